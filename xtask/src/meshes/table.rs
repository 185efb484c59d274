//! The meshes side by side, in Markdown.

use serde::{Deserialize, Serialize};

use super::seen::Fact;

/// Before each of the lines that a guest says for the table.
const MARK: &str = "@mesh ";

/// What a guest says, one by one: what it has said when it dies is not lost.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// Of which mesh the next lines are, and where it ran.
    Mesh {
        name: String,
        place: String,
    },
    Line {
        row: String,
        what: String,
        saw: String,
    },
    /// Nothing is missing.
    Done,
}

impl Said {
    pub(super) fn line(fact: &Fact) -> Self {
        Self::Line { row: fact.row.to_owned(), what: fact.what.clone(), saw: fact.saw.to_string() }
    }

    pub(super) fn print(&self) -> anyhow::Result<String> {
        Ok(format!("{MARK}{}", serde_json::to_string(self)?))
    }
}

/// One mesh's answers.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Column {
    name: String,
    place: String,
    /// Row, question, answer.
    lines: Vec<(String, String, String)>,
    done: bool,
}

impl Column {
    pub(super) fn file_name(&self) -> String {
        let plain: String = self.name.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{plain}.json")
    }
}

/// Of all meshes that are in what was printed.
pub(super) fn columns<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for said in lines.filter_map(|line| serde_json::from_str(line.strip_prefix(MARK)?).ok()) {
        match (said, columns.last_mut()) {
            (Said::Mesh { name, place }, _) => columns.push(Column { name, place, ..Column::default() }),
            (Said::Line { row, what, saw }, Some(column)) => column.lines.push((row, what, saw)),
            (Said::Done, Some(column)) => column.done = true,
            (_, None) => {}
        }
    }
    columns
}

/// A line for each question that any of the meshes was asked, by rows; within a row as they were asked.
pub(super) fn table(columns: &[Column]) -> String {
    let mut questions: Vec<(&str, &str)> = Vec::new();
    for (row, what, _) in columns.iter().flat_map(|column| &column.lines) {
        if !questions.contains(&(row, what)) {
            questions.push((row, what));
        }
    }
    // Stable: rows have two digits each.
    questions.sort_by_key(|(row, _)| *row);
    let cells = |words: &[&str]| format!("| {} |\n", words.join(" | "));
    let mut text = String::new();
    for column in columns {
        let end = if column.done { "" } else { " It did not come to its end." };
        text += &format!("{}: {}.{end}\n", column.name, column.place);
    }
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    text += "\n";
    text += &cells(&[&["row", "what"], &names[..]].concat());
    text += &format!("|{}\n", "---|".repeat(2 + columns.len()));
    for question in questions {
        let saw = columns.iter().map(|column| {
            let line = column.lines.iter().find(|(row, what, _)| question == (row, what));
            line.map_or_else(|| "–".to_owned(), |(_, _, saw)| saw.replace(['|', '\n'], " "))
        });
        let saw: Vec<String> = saw.collect();
        text += &cells(&[&[question.0, question.1], &saw.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meshes::seen::Saw;

    fn said(mesh: &str, facts: Vec<(&'static str, &str, Saw)>) -> Vec<String> {
        let mesh = Said::Mesh { name: mesh.to_owned(), place: "Linux 1".to_owned() };
        let facts = facts.into_iter().map(|(row, what, saw)| Said::line(&Fact { row, what: what.to_owned(), saw }));
        [mesh].into_iter().chain(facts).map(|said| said.print().unwrap()).collect()
    }

    #[test]
    fn questions_are_lined_up_by_row() {
        let mut lines = said("one", vec![("E36", "b", Saw::Same), ("E31", "a", Saw::NoName), ("E36", "c", Saw::Echo)]);
        lines.push("something else".to_owned());
        lines.push(Said::Done.print().unwrap());
        lines.extend(said("two", vec![("E36", "b", Saw::Changed), ("E36", "d", Saw::After(Duration::from_secs(2)))]));
        let text = table(&columns(lines.iter().map(String::as_str)));
        assert_eq!(
            text,
            "one: Linux 1.\n\
             two: Linux 1. It did not come to its end.\n\
             \n\
             | row | what | one | two |\n\
             |---|---|---|---|\n\
             | E31 | a | no such name | – |\n\
             | E36 | b | the same | another |\n\
             | E36 | c | answered | – |\n\
             | E36 | d | – | after 2.0 s |\n"
        );
    }
}

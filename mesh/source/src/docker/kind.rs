//! All objects of one kind, as last listed.

use std::{collections::BTreeMap, sync::Arc};

use hyper::body::Bytes;
use serde_json::value::RawValue;
use swarmesh_model::Problem;

use super::{
    decode::{self, FromDocker},
    http::ApiError,
};

#[derive(Debug)]
pub(super) struct Kind<T> {
    good: BTreeMap<String, Arc<T>>,
    problems: Vec<Problem>,
    /// The answer that the above was made from. Most polls bring the same one again.
    body: Option<Bytes>,
}

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self { good: BTreeMap::new(), problems: Vec::new(), body: None }
    }
}

impl<T: FromDocker> Kind<T> {
    /// Takes a whole list; true when anything is different from before. On an error nothing is.
    ///
    /// Objects that make no sense keep the form that they had, or stay out. Each is noted.
    pub(super) fn take(&mut self, path: &str, body: Bytes) -> Result<bool, ApiError> {
        if self.body.as_ref() == Some(&body) {
            return Ok(false);
        }
        let garbled = |error: serde_json::Error| ApiError::Garbled { path: path.to_owned(), message: error.to_string() };
        // Go writes an empty list as null when nobody made one.
        let list = serde_json::from_slice::<Option<Vec<&RawValue>>>(&body).map_err(garbled)?.unwrap_or_default();
        let mut good = BTreeMap::new();
        let mut problems = Vec::new();
        for json in list {
            match decode::object::<T>(json) {
                Ok(None) => {}
                Ok(Some(decoded)) => {
                    let id = decoded.object.id().to_owned();
                    problems.extend(decoded.problems);
                    let object = match self.good.get(&id) {
                        Some(old) if **old == decoded.object => Arc::clone(old),
                        _ => Arc::new(decoded.object),
                    };
                    good.insert(id, object);
                }
                Err(mut odd) => {
                    let kept = self.good.get(&odd.id);
                    odd.problem.message.push_str(if kept.is_some() { "; its last good form stays" } else { "; it is left out" });
                    problems.push(odd.problem);
                    if let Some(old) = kept {
                        good.insert(odd.id, Arc::clone(old));
                    }
                }
            }
        }
        problems.sort();
        let changed = problems != self.problems
            || good.len() != self.good.len()
            || good.iter().any(|(id, new)| self.good.get(id).is_none_or(|old| !Arc::ptr_eq(old, new)));
        *self = Self { good, problems, body: Some(body) };
        Ok(changed)
    }

    /// True when the list lacks an object that is known.
    pub(super) fn would_remove(&self, path: &str, body: Bytes) -> Result<bool, ApiError> {
        let mut after = Self { good: self.good.clone(), ..Self::default() };
        after.take(path, body)?;
        Ok(self.good.keys().any(|id| !after.good.contains_key(id)))
    }

    pub(super) fn objects(&self) -> &BTreeMap<String, Arc<T>> {
        &self.good
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

//! Bringing a lab up, and stacks into it.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Progress, require_root};
use crate::{
    runtime::{
        LabName, RuntimeError,
        control::Control,
        error::Doing,
        protocol::{Request, Setup},
        sweep,
    },
    stack,
    swarm::Changes,
};

const START: Duration = Duration::from_secs(10);
/// File names that say nothing about what is in them: the directory's name does.
const PLAIN_NAMES: [&str; 3] = ["stack", "compose", "docker-compose"];

/// A stack file that has been read and checked.
#[derive(Clone, Debug)]
pub struct StackFile {
    file: String,
    text: String,
    stack: String,
    environment: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct UpOptions {
    pub setup: Setup,
    pub stacks: Vec<StackFile>,
}

/// Reads a stack file and reports its first mistake. `name` is the stack's; without it, the file's name.
pub fn read_stack(path: &Path, name: Option<&str>) -> Result<StackFile, RuntimeError> {
    let failed = |message: String| RuntimeError::File { path: path.to_owned(), message };
    let bytes = stack::read(path).map_err(|e| failed(e.to_string()))?;
    let stack = match name {
        Some(name) => name.to_owned(),
        None => stack_name(path).ok_or_else(|| failed("its name gives the stack no name; use --stack-name".to_owned()))?,
    };
    let environment: BTreeMap<String, String> =
        env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect();
    let file = path.display().to_string();
    stack::load(&bytes, &file, &stack, &|name| environment.get(name).cloned())?;
    let text = String::from_utf8(bytes).map_err(|e| failed(e.to_string()))?;
    Ok(StackFile { file, text, stack, environment })
}

fn stack_name(path: &Path) -> Option<String> {
    let absolute = path.canonicalize().ok()?;
    let stem = absolute.file_stem()?.to_string_lossy().into_owned();
    let name = if PLAIN_NAMES.contains(&stem.as_str()) { absolute.parent()?.file_name()?.to_string_lossy().into_owned() } else { stem };
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' }).collect();
    Some(name.trim_matches(['-', '_']).to_ascii_lowercase()).filter(|n| !n.is_empty())
}

/// Starts a lab, over the leftovers of a killed one if there are any.
pub fn up(lab: &LabName, options: &UpOptions, progress: &mut Progress) -> Result<(), RuntimeError> {
    require_root()?;
    if sweep::is_running(lab) {
        return Err(RuntimeError::Running(lab.to_string()));
    }
    if sweep::exists(lab) {
        progress.line(&format!("removing what an earlier lab {lab} has left"));
        sweep::take_down(lab)?;
    }
    let result = bring_up(lab, options, progress);
    if result.is_err() {
        // The reason is told; half a lab would only be in the way.
        let _ = sweep::take_down(lab);
    }
    result
}

fn bring_up(lab: &LabName, options: &UpOptions, progress: &mut Progress) -> Result<(), RuntimeError> {
    let mut control = start_supervisor(lab)?;
    let text = control.done(&Request::Setup(options.setup.clone()), |text| progress.line(text))?;
    progress.line(&format!("lab {lab}: {text}"));
    for stack in &options.stacks {
        let changes = send(&mut control, stack, false)?;
        report(&changes, progress);
    }
    Ok(())
}

/// Deploys a stack into a running lab; `prune` removes services that the file no longer has.
pub fn deploy(lab: &LabName, stack: &StackFile, prune: bool, progress: &mut Progress) -> Result<Changes, RuntimeError> {
    require_root()?;
    let changes = send(&mut Control::connect(lab)?, stack, prune)?;
    report(&changes, progress);
    Ok(changes)
}

fn send(control: &mut Control, stack: &StackFile, prune: bool) -> Result<Changes, RuntimeError> {
    let StackFile { file, text, stack, environment } = stack.clone();
    control.changes(&Request::Deploy { file, text, stack, environment, prune })
}

fn report(changes: &Changes, progress: &mut Progress) {
    let lists = [
        ("network created", &changes.networks_created),
        ("network removed", &changes.networks_removed),
        ("service created", &changes.services_created),
        ("service updated", &changes.services_updated),
        ("service removed", &changes.services_removed),
        ("service unchanged", &changes.services_unchanged),
        ("note", &changes.notes),
    ];
    for (what, names) in lists {
        names.iter().for_each(|name| progress.line(&format!("{what}: {name}")));
    }
}

fn start_supervisor(lab: &LabName) -> Result<Control, RuntimeError> {
    let dir = lab.run_dir();
    fs::create_dir_all(&dir).doing(|| format!("making {}", dir.display()))?;
    let path = lab.supervisor_log();
    let log = fs::File::create(&path).doing(|| format!("making {}", path.display()))?;
    let errors = log.try_clone().doing(|| format!("making {}", path.display()))?;
    let program = env::current_exe().doing(|| "finding this program".to_owned())?;
    let mut child = Command::new(program)
        .args(["lab", "supervise", "--name", lab.as_str()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .doing(|| "starting the supervisor".to_owned())?;
    let deadline = Instant::now() + START;
    loop {
        match Control::connect(lab) {
            Ok(control) => return Ok(control),
            Err(_) if !has_ended(&mut child) && Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(_) => return Err(RuntimeError::Start(fs::read_to_string(&path).unwrap_or_default())),
        }
    }
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_called_after_its_file_or_directory() {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("My App");
        fs::create_dir(&app).unwrap();
        for (file, name) in [("Web.Shop.yml", "web-shop"), ("docker-compose.yml", "my-app")] {
            fs::write(app.join(file), "").unwrap();
            assert_eq!(stack_name(&app.join(file)).as_deref(), Some(name));
        }
    }
}

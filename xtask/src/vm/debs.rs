//! Debian packages that are unpacked below `target/` and not installed: the kernels, and tools that only the guest needs.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::run::{output, run, say};

/// Unpacked packages, one directory each, named like the package's file.
pub(super) struct Debs {
    directory: PathBuf,
}

impl Debs {
    pub(super) fn new(directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { directory })
    }

    /// The package's files, in the version that apt would install. Fetched when they are not there yet.
    pub(super) fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let place = self.directory.join(file_stem(package)?);
        if !place.exists() {
            self.fetch(package, &place).or_else(|_| {
                // The list of packages may name a version that the mirror has replaced since.
                run(Command::new("apt-get").arg("update"))?;
                self.fetch(package, &self.directory.join(file_stem(package)?))
            })?;
        }
        Ok(self.directory.join(file_stem(package)?))
    }

    /// Whole or not at all: the directory gets its name last.
    fn fetch(&self, package: &str, place: &Path) -> Result<()> {
        let work = tempfile::tempdir_in(&self.directory)?;
        say(&format!("fetching {package}"));
        // Root would hand the download to a user who may not write here.
        let sandbox = ["--option", "APT::Sandbox::User=root"];
        output(Command::new("apt-get").args(["download", "--quiet"]).args(sandbox).arg(package).current_dir(work.path()))?;
        let deb =
            fs::read_dir(work.path())?.filter_map(Result::ok).map(|entry| entry.path()).find(|p| p.extension().is_some_and(|e| e == "deb"));
        let deb = deb.with_context(|| format!("apt-get download {package} left no file"))?;
        let files = work.path().join("files");
        output(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&files))?;
        fs::rename(&files, place).with_context(|| format!("cannot make {}", place.display()))
    }
}

/// As apt knows it, such as `kmod_30+20221128-1_amd64`.
fn file_stem(package: &str) -> Result<String> {
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    let name = shown.lines().find_map(|line| line.strip_prefix("Filename: ")).and_then(|path| path.rsplit('/').next());
    let stem = name.and_then(|name| name.strip_suffix(".deb")).with_context(|| format!("apt knows no file of {package}"))?;
    Ok(stem.to_owned())
}

/// The newest of Debian's signed cloud kernels of a series such as `6.12`; `None` if apt offers none on this machine.
pub(super) fn newest_kernel(series: &str) -> Result<Option<String>> {
    let prefix = format!("linux-image-{series}.");
    let names = || -> Result<Option<String>> {
        let names = output(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
        let kernels = names.lines().filter(|name| name.ends_with("-cloud-amd64")).map(str::to_owned);
        Ok(kernels.max_by(|a, b| by_number(a, b)))
    };
    match names()? {
        Some(name) => Ok(Some(name)),
        None => {
            // A machine that never fetched the lists knows no package at all.
            if output(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))?.is_empty() {
                run(Command::new("apt-get").arg("update")).context("apt has no lists of packages here")?;
            }
            names()
        }
    }
}

/// Text with numbers by their value: 6.12.9 comes before 6.12.10.
fn by_number(a: &str, b: &str) -> Ordering {
    fn parts(text: &str) -> Vec<(u64, &str)> {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let words = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
            let (word, after) = after.split_at(words);
            parts.push((number.parse().unwrap_or(0), word));
            rest = after;
        }
        parts
    }
    parts(a).cmp(&parts(b))
}

/// This tier runs packages of one architecture.
pub(super) fn supported() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the vm tier boots amd64 kernels with this machine's own programs: it needs an amd64 machine");
    }
    if Command::new("apt-cache").arg("--version").output().is_err() {
        bail!("the vm tier takes kernels from Debian's packages: it needs apt");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_told_by_number() {
        let mut names =
            ["linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.100+deb12-cloud-amd64"];
        names.sort_by(|a, b| by_number(a, b));
        assert_eq!(names.map(|n| &n[17..20]), ["9+d", "100", "117"]);
        assert_eq!(by_number("6.1.0-56", "6.1.0-9"), Ordering::Greater);
    }
}

//! Root file systems for images, made of this machine's own programs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A directory that becomes an image.
#[derive(Debug)]
pub struct Rootfs {
    dir: PathBuf,
}

impl Rootfs {
    /// An empty root at `dir`, which is created.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        for below in ["bin", "etc", "tmp"] {
            fs::create_dir_all(dir.join(below)).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Adds Debian's static busybox under the names of the given applets.
    pub fn busybox(&self, applets: &[&str]) -> Result<()> {
        fs::copy("/bin/busybox", self.dir.join("bin/busybox")).context("cannot copy /bin/busybox; install busybox-static")?;
        for applet in applets {
            let link = self.dir.join("bin").join(applet);
            if !link.exists() {
                symlink("busybox", link)?;
            }
        }
        Ok(())
    }

    /// Adds a program as `/bin/NAME`, with the shared libraries that it is linked with at the places where it looks for them.
    pub fn program(&self, program: &Path, name: &str) -> Result<()> {
        fs::copy(program, self.dir.join("bin").join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        for library in libraries(program)? {
            let target = self.dir.join(library.strip_prefix("/").unwrap_or(&library));
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::copy(&library, &target).with_context(|| format!("cannot copy {}", library.display()))?;
        }
        Ok(())
    }
}

/// The files that the dynamic linker loads for a program; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // ldd fails on static programs, of which there is nothing to list.
    ensure!(!text.contains("not found"), "{} lacks a library: {text}", program.display());
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    let paths = text.lines().flat_map(str::split_whitespace).filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(paths.map(PathBuf::from).collect())
}

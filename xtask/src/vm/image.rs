//! The guest's file system: an initramfs of this machine's own programs, with their libraries.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::cpio;

enum Node {
    Directory,
    Link(PathBuf),
    /// Read when the archive is written.
    File(PathBuf),
    Text(String),
}

/// Everything by its path in the guest. As in Debian, `/bin`, `/sbin`, `/lib` and `/lib64` lead below `/usr`.
pub(super) struct Image {
    nodes: BTreeMap<PathBuf, Node>,
    /// Unpacked packages: looked at before this machine's own root.
    roots: Vec<PathBuf>,
}

const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const PROGRAMS: [&str; 4] = ["usr/sbin", "usr/bin", "sbin", "bin"];

impl Image {
    pub(super) fn new(roots: Vec<PathBuf>) -> Self {
        let mut image = Self { nodes: BTreeMap::new(), roots };
        for name in MERGED {
            image.directory(&Path::new("usr").join(name));
            image.nodes.insert(name.into(), Node::Link(Path::new("usr").join(name)));
        }
        image
    }

    /// An empty directory, with those above it.
    pub(super) fn directory(&mut self, path: &Path) {
        for above in path.ancestors().filter(|above| !above.as_os_str().is_empty()) {
            self.nodes.entry(above.to_path_buf()).or_insert(Node::Directory);
        }
    }

    fn put(&mut self, path: &Path, node: Node) {
        let path = merged(path);
        if let Some(parent) = path.parent() {
            self.directory(parent);
        }
        self.nodes.insert(path, node);
    }

    /// A file made here, executable.
    pub(super) fn text(&mut self, path: &str, text: impl Into<String>) {
        self.put(Path::new(path), Node::Text(text.into()));
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.put(Path::new(path), Node::Link(target.into()));
    }

    /// One file under another name, without what it needs.
    pub(super) fn file(&mut self, path: &Path, from: &Path) {
        self.put(path, Node::File(from.to_path_buf()));
    }

    /// All files below a directory, as they are.
    pub(super) fn tree(&mut self, path: &Path, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
            let entry = entry?;
            let to = path.join(entry.file_name());
            match entry.file_type()? {
                kind if kind.is_dir() => self.tree(&to, &entry.path())?,
                kind if kind.is_symlink() => self.put(&to, Node::Link(fs::read_link(entry.path())?)),
                _ => self.file(&to, &entry.path()),
            }
        }
        Ok(())
    }

    /// A program by its name, with what its links lead to and the libraries that it needs.
    pub(super) fn program(&mut self, name: &str) -> Result<()> {
        let root = Path::new("/").to_path_buf();
        let places = self.roots.iter().chain([&root]).flat_map(|root| PROGRAMS.iter().map(move |place| root.join(place).join(name)));
        let found = places.into_iter().find(|path| path.symlink_metadata().is_ok());
        let found = found.with_context(|| format!("{name} is not on this machine"))?;
        self.follow(&found)
    }

    /// A file of this machine or of an unpacked package at its own path, along all links.
    fn follow(&mut self, path: &Path) -> Result<()> {
        let mut path = path.to_path_buf();
        // Longer chains than the kernel follows itself are a circle.
        for _ in 0..40 {
            let (root, guest) = self.place(&path)?;
            if !path.symlink_metadata().with_context(|| format!("cannot read {}", path.display()))?.is_symlink() {
                self.file(&guest, &path);
                return self.libraries(&path);
            }
            let target = fs::read_link(&path)?;
            let next = match target.strip_prefix("/") {
                Ok(absolute) => root.join(absolute),
                Err(_) => path.parent().unwrap_or(Path::new("/")).join(&target),
            };
            self.put(&guest, Node::Link(target));
            path = next;
        }
        bail!("{} leads in a circle", path.display())
    }

    /// Which root it is below, and where that is in the guest. Directories on the way are taken for what they lead to.
    fn place(&self, path: &Path) -> Result<(PathBuf, PathBuf)> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent = parent.canonicalize().with_context(|| format!("cannot find {}", parent.display()))?;
        let path = parent.join(path.file_name().unwrap_or_default());
        for root in &self.roots {
            if let Ok(below) = path.strip_prefix(root) {
                return Ok((root.clone(), below.to_path_buf()));
            }
        }
        Ok((PathBuf::from("/"), path.strip_prefix("/").map(Path::to_path_buf)?))
    }

    /// Libraries that a program opens by itself, by their directory below a root.
    pub(super) fn extensions(&mut self, directory: &Path) -> Result<()> {
        let from = Path::new("/").join(directory);
        self.tree(directory, &from)?;
        for file in fs::read_dir(&from)?.filter_map(Result::ok) {
            self.libraries(&file.path())?;
        }
        Ok(())
    }

    /// What the dynamic linker would load for it.
    pub(super) fn libraries(&mut self, file: &Path) -> Result<()> {
        let extra = self.roots.iter().flat_map(|root| LIBRARIES.iter().map(move |place| root.join(place)));
        let extra: Vec<String> = extra.filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect();
        // Says that a static program is none and ends with 1; that is no failure here.
        let listed = Command::new("ldd").arg(file).env("LD_LIBRARY_PATH", extra.join(":")).output().context("cannot run ldd")?;
        for line in String::from_utf8_lossy(&listed.stdout).lines().map(str::trim) {
            if line.ends_with("not found") {
                bail!("{}: {line}", file.display());
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let library = match words[..] {
                [_, "=>", path, _] => path,
                [path, _] if path.starts_with('/') => path,
                _ => continue,
            };
            let (_, guest) = self.place(Path::new(library))?;
            if !self.nodes.contains_key(&merged(&guest)) {
                self.follow(Path::new(library))?;
            }
        }
        Ok(())
    }

    /// Writes all of it as an archive that the kernel unpacks.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = cpio::Writer::new(std::io::BufWriter::new(file));
        for (path, node) in &self.nodes {
            match node {
                Node::Directory => archive.directory(path)?,
                Node::Link(target) => archive.link(path, target)?,
                Node::Text(text) => archive.file(path, true, text.as_bytes())?,
                Node::File(from) => {
                    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    archive.file(path, from.metadata()?.permissions().mode() & 0o111 != 0, &content)?;
                }
            }
        }
        archive.finish()?.flush()?;
        Ok(())
    }
}

/// Without the leading slash, and below `usr` where a merged Debian has it.
fn merged(path: &Path) -> PathBuf {
    let path = path.strip_prefix("/").unwrap_or(path);
    match path.components().next() {
        Some(Component::Normal(first)) if path.components().count() > 1 && MERGED.iter().any(|name| first == *name) => {
            Path::new("usr").join(path)
        }
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_a_merged_root() {
        assert_eq!(merged(Path::new("/lib64/ld.so")), Path::new("usr/lib64/ld.so"));
        assert_eq!(merged(Path::new("sbin")), Path::new("sbin"));
        assert_eq!(merged(Path::new("/usr/sbin/nft")), Path::new("usr/sbin/nft"));
    }
}

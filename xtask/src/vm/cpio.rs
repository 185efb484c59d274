//! The archive format of an initramfs (`Documentation/driver-api/early-userspace/buffer-format.rst`): "newc", everything root's.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;

/// Directories must come before what is in them, as they do in the order of paths.
pub(super) struct Writer<W> {
    out: W,
    inode: u32,
    written: usize,
}

impl<W: Write> Writer<W> {
    pub(super) const fn new(out: W) -> Self {
        Self { out, inode: 0, written: 0 }
    }

    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.entry(path.as_os_str().as_bytes(), DIRECTORY, &[])
    }

    pub(super) fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.entry(path.as_os_str().as_bytes(), LINK, target.as_os_str().as_bytes())
    }

    pub(super) fn file(&mut self, path: &Path, executable: bool, content: &[u8]) -> io::Result<()> {
        self.entry(path.as_os_str().as_bytes(), if executable { EXECUTABLE } else { PLAIN }, content)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(b"TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB or more"))?;
        self.inode += 1;
        // Magic; inode, mode, owner, group, links, time, size; device and node, twice; length of the name; checksum.
        let numbers = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        self.put(b"070701")?;
        self.put(header.as_bytes())?;
        self.put(name)?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// busybox, or whichever cpio there is, reads what was written.
    #[test]
    fn another_program_reads_the_archive() {
        let mut archive = Writer::new(Vec::new());
        archive.directory(Path::new("a")).unwrap();
        archive.file(Path::new("a/odd"), true, b"#!/bin/sh\n").unwrap();
        archive.link(Path::new("b"), Path::new("a/odd")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");

        let Ok(mut reader) = Command::new("busybox").args(["cpio", "-tv"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            println!("skipped: no busybox here");
            return;
        };
        reader.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = reader.wait_with_output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = listed.lines().collect();
        assert!(output.status.success(), "{listed}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" a"), "{listed}");
        assert!(lines[1].starts_with("-rwxr-xr-x") && lines[1].contains(" 10 "), "{listed}");
        assert!(lines[2].ends_with("b -> a/odd"), "{listed}");
    }
}

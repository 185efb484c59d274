//! What one guest is made of: a kernel's package, this machine's tools, the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    debs::Debs,
    image::Image,
    suites::{Plane, Test},
};
use crate::run::output;

const INIT: &str = include_str!("init.sh");
/// How much longer a guest may take than a machine, at the worst: two of them on two processors.
const PATIENCE: &str = "10";

/// From this machine; the netns tier has them installed.
pub(super) const HOST_PACKAGES: [&str; 7] = ["qemu-system-x86", "busybox-static", "nftables", "iptables", "iproute2", "conntrack", "curl"];
// A shell of its own: busybox's takes its own `ip` and `modprobe` for the real ones, whatever the path says.
const HOST_PROGRAMS: [&str; 15] = [
    "dash",
    "busybox",
    "nft",
    "ip",
    "tc",
    "bridge",
    "conntrack",
    "iptables",
    "ip6tables",
    "iptables-nft",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "curl",
    "unshare",
    "nsenter",
];
/// Unpacked only: on this machine they would be of no use, or start something.
const GUEST_PACKAGES: [&str; 6] = ["kmod", "libkmod2", "ipvsadm", "libnl-3-200", "libnl-genl-3-200", "libpopt0"];
const GUEST_PROGRAMS: [&str; 3] = ["kmod", "modprobe", "ipvsadm"];
const IPTABLES_EXTENSIONS: &str = "usr/lib/x86_64-linux-gnu/xtables";
/// Drivers of real devices are left out.
const MODULES: [&str; 5] = ["arch", "crypto", "fs/overlayfs", "lib", "net"];
const NETWORK_DRIVERS: &str = "drivers/net";

/// A kernel's package, unpacked.
pub(super) struct KernelFiles {
    pub(super) release: String,
    pub(super) image: PathBuf,
    /// `…/lib/modules/<release>`
    modules: PathBuf,
}

impl KernelFiles {
    pub(super) fn find(package: &Path) -> Result<Self> {
        let only = |directory: &Path, prefix: &str| -> Result<PathBuf> {
            let found = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
            let mut found = found.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
            found.next().map(|entry| entry.path()).with_context(|| format!("no {prefix}… in {}", directory.display()))
        };
        let image = only(&package.join("boot"), "vmlinuz-")?;
        // Debian 13 has them below /usr.
        let modules = only(&package.join("lib/modules"), "").or_else(|_| only(&package.join("usr/lib/modules"), ""))?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { release, image, modules })
    }

    /// Packages leave this to their installation.
    fn index_modules(&self, depmod: &Path, libraries: &Path) -> Result<()> {
        if self.modules.join("modules.dep").exists() {
            return Ok(());
        }
        let base = self.modules.ancestors().nth(3).unwrap_or(Path::new("/"));
        let mut command = Command::new(depmod);
        command.arg("--basedir").arg(base).arg(&self.release).env("LD_LIBRARY_PATH", libraries);
        output(&mut command).map(|_| ())
    }

    fn add_modules(&self, image: &mut Image) -> Result<()> {
        let to = Path::new("lib/modules").join(&self.release);
        for directory in MODULES {
            image.tree(&to.join("kernel").join(directory), &self.modules.join("kernel").join(directory))?;
        }
        for from in [NETWORK_DRIVERS, "drivers/net/vxlan", "drivers/net/ipvlan"]
            .map(|d| Path::new("kernel").join(d))
            .into_iter()
            .chain([PathBuf::new()])
        {
            let Ok(files) = fs::read_dir(self.modules.join(&from)) else { continue };
            for file in files.filter_map(Result::ok).filter(|file| file.file_type().is_ok_and(|kind| kind.is_file())) {
                image.file(&to.join(&from).join(file.file_name()), &file.path());
            }
        }
        Ok(())
    }
}

/// How long things may take inside.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) test_seconds: u64,
    /// For a table of rows.
    pub(super) lab_seconds: u64,
    pub(super) boot_seconds: u64,
}

/// What is done inside after the smoke test.
pub(super) struct Work<'a> {
    /// The agent and the emulator, which tests find as `swarmesh`.
    pub(super) program: &'a Path,
    pub(super) tests: &'a [Test],
    /// Instead of the tests.
    pub(super) script: Option<&'a str>,
}

/// What every guest has: tools, modules, `init`. `path` is where the image will be.
pub(super) fn base(path: &Path, debs: &Debs, kernel: &KernelFiles, limits: Limits) -> Result<Image> {
    let roots = GUEST_PACKAGES.iter().map(|package| debs.unpacked(package)).collect::<Result<Vec<_>>>()?;
    let [kmod, libkmod, ..] = &roots[..] else { bail!("a guest without kmod") };
    let library = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|place| libkmod.join(place));
    let library = library.iter().find(|place| place.is_dir()).context("libkmod2 has no library")?;
    let program = kmod.join("bin/kmod");
    let program = if program.exists() { program } else { kmod.join("usr/bin/kmod") };
    // kmod does what the name says that it is called by.
    let depmod = path.with_file_name("depmod");
    if depmod.symlink_metadata().is_err() {
        std::os::unix::fs::symlink(&program, &depmod)?;
    }
    kernel.index_modules(&depmod, library)?;

    let mut image = Image::new(roots);
    for program in GUEST_PROGRAMS.iter().chain(&HOST_PROGRAMS) {
        image.program(program)?;
    }
    image.extensions(Path::new(IPTABLES_EXTENSIONS))?;
    kernel.add_modules(&mut image)?;
    image.text("init", INIT);
    image.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    image.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    image.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
    // No server outside, and none to wait for; containers' own are mounted over it.
    image.text("etc/resolv.conf", "");
    image.link("bin/sh", "dash");
    ["proc", "sys", "dev", "run", "tmp", "root", "var"].iter().for_each(|place| image.directory(Path::new(place)));
    let Limits { test_seconds, lab_seconds, boot_seconds } = limits;
    image.text("tests/settings", format!("TEST_SECONDS={test_seconds}\nLAB_SECONDS={lab_seconds}\nBOOT_SECONDS={boot_seconds}\n"));
    image.text("tests/environment", environment());
    Ok(image)
}

/// Writes the initramfs.
pub(super) fn write_image(path: &Path, debs: &Debs, kernel: &KernelFiles, work: &Work<'_>, limits: Limits) -> Result<()> {
    let mut image = base(path, debs, kernel, limits)?;
    image.text("tests/list", list(work.tests));
    let program = small(path, work.program)?;
    image.file(Path::new("usr/bin/swarmesh"), &program);
    image.libraries(&program)?;
    add_tests(&mut image, path, work.tests)?;
    if let Some(script) = work.script {
        image.text("tests/script", format!("{script}\n"));
    }
    image.write(path)
}

/// A line for each test: its number, its plane or `-`, its name.
fn list(tests: &[Test]) -> String {
    let line = |(number, test): (usize, &Test)| format!("{number} {} {}\n", test.plane.map_or("-", Plane::name), test.name);
    tests.iter().enumerate().map(line).collect()
}

/// What tests are told. The caller's own words go first.
fn environment() -> String {
    let defaults = [("SWARMESH_TEST_PATIENCE", PATIENCE), ("ROWS", "")];
    let value = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned()).replace('\'', "");
    defaults.iter().map(|(name, default)| format!("export {name}='{}'\n", value(name, default))).collect()
}

/// A copy without what only debuggers read, which is most of it; made beside the image.
fn small(image: &Path, binary: &Path) -> Result<PathBuf> {
    let directory = image.with_file_name("tests");
    fs::create_dir_all(&directory)?;
    let small = directory.join(binary.file_name().unwrap_or_default());
    let fresh = small.metadata().and_then(|to| Ok(to.modified()? >= binary.metadata()?.modified()?)).unwrap_or(false);
    if !fresh {
        output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(binary))?;
    }
    Ok(small)
}

/// Each binary once; each test is a link to its binary.
fn add_tests(image: &mut Image, path: &Path, tests: &[Test]) -> Result<()> {
    for (number, test) in tests.iter().enumerate() {
        let name = test.binary.file_name().unwrap_or_default();
        let small = small(path, &test.binary)?;
        image.file(&Path::new("tests").join(name), &small);
        image.libraries(&small)?;
        image.link(&format!("tests/{number}"), &name.to_string_lossy());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_told_its_plane() {
        let test = |name: &str, plane| Test { suite: "s".to_owned(), name: name.to_owned(), binary: "/t".into(), plane };
        let tests = [test("real::one", None), test("rows", Some(Plane::Nft)), test("rows", Some(Plane::Ipvs))];
        assert_eq!(list(&tests), "0 - real::one\n1 nft rows\n2 ipvs rows\n");
    }
}

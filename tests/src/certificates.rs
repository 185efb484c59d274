//! Certificates as documents make them: by `openssl req`, signed by themselves, in a directory.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

/// Where they are put.
#[derive(Clone, Debug)]
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Interlock's own command: a certificate and its key, in two files.
    pub fn as_printed(&self, name: &str) -> Result<(String, String)> {
        self.of(name, name, &["-newkey", "rsa:4096"])
    }

    /// As [`Self::as_printed`], sooner done, in files of another name.
    pub fn pair(&self, files: &str, name: &str) -> Result<(String, String)> {
        self.of(files, name, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    pub fn of(&self, files: &str, name: &str, key: &[&str]) -> Result<(String, String)> {
        let [certificate, private] = ["cert", "key"].map(|end| self.file(&format!("{files}.{end}")));
        let subject = format!("/C=US/ST=SomeState/L=SomeCity/O=Interlock/CN={name}");
        let mut command = Command::new("openssl");
        command.args(["req", "-new"]).args(key).args(["-days", "3650", "-nodes", "-x509", "-subj", &subject]);
        let output = command.args(["-keyout", &private, "-out", &certificate]).output().context("cannot run openssl")?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok((certificate, private))
    }

    /// One file with both, for servers that open TLS themselves.
    pub fn pem(&self, name: &str) -> Result<String> {
        let (certificate, key) = self.pair(name, name)?;
        let pem = self.file(&format!("{name}.pem"));
        fs::write(&pem, fs::read_to_string(certificate)? + &fs::read_to_string(key)?)?;
        Ok(pem)
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }
}

/// What `openssl x509` says of a file's serial number.
pub fn serial(certificate: &str) -> Result<String> {
    let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in", certificate]).output()?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

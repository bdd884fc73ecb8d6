//! Kernel parameters below `/proc/sys`: read, compare, write. Those of `net` are of the namespace of the calling thread.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error};
use crate::plan::Sysctl;

/// What the parameter is; `None` where this kernel does not have it.
pub fn read(path: &str) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(file(path)) {
        Ok(value) => Ok(Some(value.trim_end().to_string())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("read sysctl {path}")),
    }
}

/// Makes the parameter what it should be, where there is one.
pub fn ensure(sysctl: &Sysctl) -> Result<(), Error> {
    match read(&sysctl.path)? {
        Some(value) if value != sysctl.value => {
            std::fs::write(file(&sysctl.path), &sysctl.value).context(|| format!("write sysctl {}", sysctl.path))
        }
        _ => Ok(()),
    }
}

/// The same without a look at it: a link that was just made has what the kernel gives to all.
pub fn write(sysctl: &Sysctl) -> Result<(), Error> {
    match File::options()
        .write(true)
        .open(file(&sysctl.path))
        .and_then(|mut file| file.write_all(sysctl.value.as_bytes()))
    {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.context(|| format!("write sysctl {}", sysctl.path)),
    }
}

fn file(path: &str) -> PathBuf {
    Path::new("/proc/sys").join(path)
}

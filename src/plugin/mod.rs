//! The face that the container runtime meets: environment and stdin in, one verb, stdout and an exit code out.

mod add;
mod check;
mod daemon;
mod del;
mod gc;
mod status;

use std::io::{Read, Write};
use std::process::ExitCode;

use crate::cni::{self, Call, Code, Env, Failure, NetConf, Request, Version};
use crate::gather::Gather;

/// One call of the runtime. Without `CNI_COMMAND` nobody but a person can have called: say what this is.
pub fn main() -> ExitCode {
    let env = environment();
    if !env.contains_key("CNI_COMMAND") {
        return about();
    }
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(failure) => return answer(&failure.json(Version::NEWEST), ExitCode::FAILURE),
    };
    match Request::parse(&env, &stdin).and_then(serve) {
        Ok(text) => answer(&text, ExitCode::SUCCESS),
        Err(failure) => answer(&failure.json(cni::version_in(&stdin)), ExitCode::FAILURE),
    }
}

/// When nobody reads the answer, the exit code still says it.
fn answer(text: &str, code: ExitCode) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

fn environment() -> Env {
    let ours = |(name, value): (std::ffi::OsString, _)| Some((name.into_string().ok()?, value));
    std::env::vars_os().filter_map(ours).filter(|(name, _)| name.starts_with("CNI_")).gather()
}

fn about() -> ExitCode {
    let text = format!(
        "CNI plugin terway {}\nCNI protocol versions supported: {}\n",
        env!("CARGO_PKG_VERSION"),
        Version::list()
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    // One byte more than allowed shows that there is more.
    let read = std::io::stdin().lock().take(cni::MAX_STDIN as u64 + 1).read_to_end(&mut text);
    read.map_err(|e| Failure::new(Code::Io, format!("read stdin: {e}")))?;
    Ok(text)
}

/// The text for stdout; most verbs answer nothing.
fn serve(request: Request) -> Result<String, Failure> {
    let silent = |()| String::new();
    match request.call {
        Call::Version => Ok(cni::version_json(request.version)),
        Call::Add { pod, uid, sandbox, conf } => {
            speak_if_asked(&conf);
            add::add(pod, uid, sandbox, &conf).map(|reply| reply.json(request.version))
        }
        Call::Del { attachment, netns, pod } => del::del(&attachment, netns.as_deref(), pod.as_ref()).map(silent),
        Call::Check { sandbox, pod, conf, prev } => {
            speak_if_asked(&conf);
            check::check(&sandbox, pod.as_ref(), &conf, prev.as_ref()).map(silent)
        }
        Call::Gc { network, valid } => gc::gc(network, valid).map(silent),
        Call::Status => status::status().map(silent),
    }
}

/// The log is for `"debug": true`; setting it up costs time that nobody else should pay.
fn speak_if_asked(conf: &NetConf) {
    if conf.debug {
        env_logger::Builder::new().filter_level(log::LevelFilter::Debug).init();
    }
}

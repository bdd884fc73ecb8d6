//! The container runtime's side of CNI: execs a plugin as runtimes do, and takes down what it says and how long it took.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use terway::pod::PodName;

use super::ns::Process;

/// Runtimes give up on a plugin after some minutes; tests sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a runtime knows when it calls a plugin for a sandbox.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub plugin: PathBuf,
    pub container: String,
    pub netns: PathBuf,
    pub ifname: String,
    pub pod: PodName,
    /// Which one of this name, where the runtime says it.
    pub uid: Option<String>,
    /// The network configuration, as it goes to the plugin's standard input.
    pub conf: String,
}

/// How a plugin ended.
#[derive(Debug)]
pub struct Answer {
    /// `None` where a signal ended it, ours after its time.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Sandbox {
    /// Calls the plugin from the thread we are on, which must be inside the node: `node.run(|| sandbox.call("ADD"))`.
    pub fn call(&self, verb: &str) -> Answer {
        self.call_within(verb, PATIENCE)
    }

    /// The same, and the plugin is killed (SIGKILL) where it takes longer than this.
    pub fn call_within(&self, verb: &str, patience: Duration) -> Answer {
        exec_within(&mut self.command(verb), &self.conf, patience)
    }

    /// The plugin with its whole environment, for those who run it in a way of their own.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.plugin);
        command.env_clear().envs(self.environment(verb));
        command
    }

    /// Starts the plugin from the thread we are on, its answer unread; killed when dropped, in the middle of whatever it does.
    pub fn begin(&self, verb: &str) -> Process {
        let mut command = Command::new(&self.plugin);
        command.env_clear().envs(self.environment(verb));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut plugin = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let _ = plugin.stdin.take().expect("it is piped").write_all(self.conf.as_bytes());
        Process(plugin)
    }

    fn environment(&self, verb: &str) -> [(&'static str, OsString); 7] {
        let folder = self.plugin.parent().unwrap_or(Path::new("/"));
        let PodName { namespace, name } = &self.pod;
        let container = &self.container;
        let mut args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container}"
        );
        self.uid.iter().for_each(|uid| args.push_str(&format!(";K8S_POD_UID={uid}")));
        [
            ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", container.into()),
            ("CNI_NETNS", self.netns.clone().into()),
            ("CNI_IFNAME", (&self.ifname).into()),
            ("CNI_PATH", folder.into()),
            ("CNI_ARGS", args.into()),
        ]
    }
}

impl Answer {
    /// The result, or the error, that the plugin printed.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    /// The same answer, if it is success.
    pub fn ok(self) -> Answer {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }
}

/// Runs a plugin whose environment is complete with this standard input; killed where it takes more than a minute.
pub fn exec(command: &mut Command, conf: &str) -> Answer {
    exec_within(command, conf, PATIENCE)
}

fn exec_within(command: &mut Command, conf: &str, patience: Duration) -> Answer {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (tell, told) = mpsc::channel();
    // The watch stands before the clock starts, so that its making is not in the figure.
    let (Output { status, stdout, stderr }, took) = thread::scope(|scope| {
        scope.spawn(move || watch(&told, patience));
        let start = Instant::now();
        let output = finish(command, conf, &tell);
        let took = start.elapsed();
        drop(tell);
        (output, took)
    });
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Answer { code: status.code(), stdout: text(stdout), stderr: text(stderr), took }
}

fn finish(command: &mut Command, conf: &str, tell: &Sender<OwnedFd>) -> Output {
    let mut plugin = command.spawn().unwrap_or_else(|e| panic!("start {command:?}: {e}"));
    let pidfd = pidfd_open(Pid::from_child(&plugin), PidfdFlags::empty()).expect("it is our child");
    tell.send(pidfd).expect("the watch waits for it");
    // A plugin that ends before it has read all of it has its reasons.
    let _ = plugin.stdin.take().expect("it is piped").write_all(conf.as_bytes());
    plugin.wait_with_output().expect("it is our child")
}

/// Kills the plugin that it is told of, unless the other end of the channel is dropped in time.
fn watch(told: &Receiver<OwnedFd>, patience: Duration) {
    let Ok(pidfd) = told.recv() else { return };
    if told.recv_timeout(patience).is_err_and(|e| e == RecvTimeoutError::Timeout) {
        // It may end in this moment.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

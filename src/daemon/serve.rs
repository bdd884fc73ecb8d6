//! The unix socket: one JSON line asked, one answered, for root alone, bounded in size, time and number.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use smol::channel::{Receiver, Sender, bounded};
use smol::{LocalExecutor, future};

use super::meter;
use super::node::Input;
use super::reactor::{Async, Timer};
use crate::error::{Context, Error};
use crate::pod::Attachment;
use crate::rpc::{MAX_LINE, Refusal, Reply, Request};

/// A client says its line within this time, or is not served.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients at once; more wait in the kernel's backlog.
const MAX_CLIENTS: usize = 1024;

type Stream = Async<UnixStream>;

/// Listens on a socket that only root can open, in a folder that is there (`alone.rs` makes it); a stale socket of an
/// earlier life is replaced.
pub fn listen(path: &Path) -> Result<Async<UnixListener>, Error> {
    open(path).context(|| format!("listen on {}", path.display()))
}

fn open(path: &Path) -> Result<Async<UnixListener>, Error> {
    // Bound aside and renamed into place with its final mode: no moment in which others could connect, or nobody.
    let aside = path.with_extension("new");
    match std::fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&aside)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&aside, path)?;
    Ok(Async::new(listener)?)
}

/// Serves until the executor is dropped.
pub async fn serve(listener: Async<UnixListener>, executor: Rc<LocalExecutor<'static>>, inputs: Sender<Input>) {
    let (permits, free) = bounded(MAX_CLIENTS);
    loop {
        let _ = permits.send(()).await; // waits while MAX_CLIENTS are served
        match listener.read_with(accept).await {
            Ok(stream) => {
                let (inputs, free) = (inputs.clone(), free.clone());
                executor.spawn(client(stream, inputs, free)).detach();
            }
            Err(e) => {
                log::warn!("accept: {e}");
                let _ = free.recv().await;
                Timer::after(Duration::from_millis(100)).await; // out of file descriptors: do not spin
            }
        }
    }
}

/// Blocking in name only: what it is called for is there.
fn accept(listener: &UnixListener) -> io::Result<Stream> {
    let (stream, _) = listener.accept()?;
    Async::new(stream)
}

async fn client(stream: Stream, inputs: Sender<Input>, free: Receiver<()>) {
    if let Err(e) = exchange(&stream, inputs).await {
        log::debug!("client: {e}");
    }
    let _ = free.recv().await;
}

async fn exchange(stream: &Stream, inputs: Sender<Input>) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream.get_ref())?;
    if !peer.uid.is_root() {
        return answer(stream, &refuse(format!("user {} may not ask, only root", peer.uid.as_raw()))).await;
    }
    let line = match future::or(async { Some(read_line(stream).await) }, async {
        Timer::after(PATIENCE).await;
        None
    })
    .await
    {
        Some(line) => line?,
        None => return answer(stream, &refuse(format!("no complete line within {} s", PATIENCE.as_secs()))).await,
    };
    let start = Instant::now();
    let reply = match line {
        Line::Text(text) => match serde_json::from_slice::<Request>(&text) {
            Ok(request) => {
                let api = meter::api(&request);
                let reply = ask(stream, request, &inputs).await?;
                reply.iter().for_each(|reply| meter::answered(api, reply, start.elapsed()));
                reply
            }
            Err(e) => Some(refuse(format!("not a request we know: {e}"))),
        },
        Line::TooLong => Some(refuse(format!("a request has at most {MAX_LINE} bytes"))),
        Line::Nothing => None,
    };
    let Some(reply) = reply else { return Ok(()) };
    answer(stream, &reply).await?;
    if let Reply::Lease(lease) = reply {
        wiring(stream, lease.sandbox.attachment, start, &inputs).await;
    }
    Ok(())
}

/// Who got a lease hangs up once the pod is wired, or nothing more is done about it.
async fn wiring(stream: &Stream, attachment: Attachment, start: Instant, inputs: &Sender<Input>) {
    let over = async {
        let mut rest = [0; 64];
        while read(stream, &mut rest).await.is_ok_and(|n| n != 0) {}
        true
    };
    let late = async {
        Timer::after(PATIENCE).await;
        false
    };
    if future::or(over, late).await {
        meter::added(start.elapsed());
        let _ = inputs.send(Input::Wired { attachment }).await;
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    /// The client went away without a word, or in the middle of one.
    Nothing,
}

async fn read_line(stream: &Stream) -> io::Result<Line> {
    let mut line = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let n = read(stream, &mut chunk).await?;
        if n == 0 {
            return Ok(Line::Nothing);
        }
        if let Some(end) = chunk[..n].iter().position(|b| *b == b'\n') {
            line.extend_from_slice(&chunk[..end]);
            return Ok(Line::Text(line));
        }
        line.extend_from_slice(&chunk[..n]);
        if line.len() >= MAX_LINE {
            return Ok(Line::TooLong);
        }
    }
}

/// Hands the request to the node loop and waits for its answer, or for the client to hang up.
async fn ask(stream: &Stream, request: Request, inputs: &Sender<Input>) -> io::Result<Option<Reply>> {
    let (answer, answered) = bounded(1);
    if inputs.send(Input::Ask { request, answer }).await.is_err() {
        return Ok(Some(Reply::Refused { why: Refusal::Starting, reason: "terwayd is ending".into() }));
    }
    let hung_up = async {
        let mut rest = [0; 64];
        while read(stream, &mut rest).await? != 0 {} // what comes after the one line is not ours to read
        Ok(None)
    };
    let reply = async { Ok(answered.recv().await.ok()) };
    future::or(reply, hung_up).await // dropping `answered` tells the loop that nobody waits any more
}

async fn answer(stream: &Stream, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply).expect("a reply is plain data");
    text.push(b'\n');
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let n = stream.write_with(|mut stream| stream.write(rest)).await?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Waits for something to read, or for the end.
async fn read(stream: &Stream, buffer: &mut [u8]) -> io::Result<usize> {
    stream.read_with(|mut stream| stream.read(buffer)).await
}

fn refuse(reason: String) -> Reply {
    Reply::Refused { why: Refusal::BadRequest, reason }
}

//! For those who watch the daemon: `/metrics`, `/healthz` and `/readyz` over HTTP, on a unix socket and where else it is told to.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use smol::channel::{Receiver, Sender, bounded};
use smol::{LocalExecutor, future};

use super::node::Input;
use super::reactor::{Async, Timer};
use super::{meter, serve};
use crate::error::{Context, Error};
use crate::ours;
use crate::rpc::{Reply, Request};

/// Question and answer together take no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients at once; more wait in the kernel's backlog.
const MAX_CLIENTS: usize = 16;
/// What a client may say of itself before it has asked.
const MAX_REQUEST: usize = 8192;

/// Where it is listened; a request is the same at either.
enum Door {
    Unix(Async<UnixListener>),
    Tcp(Async<TcpListener>),
}

/// Opens the socket that is always there, and what the option asks for: `unix://` and a path, or an address and a port.
pub fn open(option: Option<&str>, executor: &Rc<LocalExecutor<'static>>, inputs: &Sender<Input>) -> Result<(), Error> {
    let mut doors = vec![Door::Unix(serve::listen(ours::WATCHERS_SOCKET.as_ref())?)];
    doors.extend(option.map(door).transpose()?);
    let (permits, free) = bounded(MAX_CLIENTS);
    for door in doors {
        executor.spawn(keep(door, executor.clone(), inputs.clone(), permits.clone(), free.clone())).detach();
    }
    Ok(())
}

fn door(option: &str) -> Result<Door, Error> {
    let doing = || format!("--readonly-listen {option}");
    if let Some(path) = option.strip_prefix("unix://") {
        return serve::listen(Path::new(path)).map(Door::Unix).context(doing);
    }
    let listener = TcpListener::bind(option).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidInput => Error::refused("neither unix:///PATH nor ADDRESS:PORT"),
        _ => e.into(),
    });
    Ok(Door::Tcp(Async::new(listener.context(doing)?)?))
}

async fn keep(
    door: Door,
    executor: Rc<LocalExecutor<'static>>,
    inputs: Sender<Input>,
    permits: Sender<()>,
    free: Receiver<()>,
) {
    loop {
        let _ = permits.send(()).await;
        let (inputs, free) = (inputs.clone(), free.clone());
        let accepted = match &door {
            Door::Unix(listener) => {
                listener.read_with(|l| Async::<UnixStream>::new(l.accept()?.0)).await.map(|stream| {
                    executor.spawn(client(stream, inputs, free.clone())).detach();
                })
            }
            Door::Tcp(listener) => listener.read_with(|l| Async::<TcpStream>::new(l.accept()?.0)).await.map(|stream| {
                executor.spawn(client(stream, inputs, free.clone())).detach();
            }),
        };
        if let Err(e) = accepted {
            log::debug!("accept: {e}");
            let _ = free.recv().await;
            Timer::after(Duration::from_millis(100)).await; // out of file descriptors: do not spin
        }
    }
}

async fn client<S>(stream: Async<S>, inputs: Sender<Input>, free: Receiver<()>)
where
    S: AsFd + 'static,
    for<'a> &'a S: Read + Write,
{
    let late = async {
        Timer::after(PATIENCE).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    if let Err(e) = future::or(exchange(&stream, &inputs), late).await {
        log::debug!("watcher: {e}");
    }
    let _ = free.recv().await;
}

async fn exchange<S>(stream: &Async<S>, inputs: &Sender<Input>) -> io::Result<()>
where
    S: AsFd + 'static,
    for<'a> &'a S: Read + Write,
{
    let mut said = Vec::new();
    let mut chunk = [0; 1024];
    while !said.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read_with(|mut stream| stream.read(&mut chunk)).await?;
        if n == 0 || said.len() + n > MAX_REQUEST {
            return Ok(());
        }
        said.extend_from_slice(&chunk[..n]);
    }
    let text = answer(asked(&said), inputs).await;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let n = stream.write_with(|mut stream| stream.write(rest)).await?;
        rest = &rest[n..];
    }
    Ok(())
}

/// The path of a GET.
pub(super) fn asked(said: &[u8]) -> Option<&str> {
    let line = said.split(|b| *b == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let path = (words.next()? == "GET").then(|| words.next())??;
    path.split('?').next()
}

async fn answer(path: Option<&str>, inputs: &Sender<Input>) -> String {
    match path {
        Some("/metrics") => {
            let (answer, answered) = bounded(1);
            let asked = inputs.send(Input::Count { answer }).await;
            let counted = if asked.is_ok() { answered.recv().await.ok() } else { None };
            response("200 OK", "text/plain; version=0.0.4", &meter::page(counted.as_ref()))
        }
        // This thread answers: it is not stuck.
        Some("/healthz") => response("200 OK", "text/plain", "ok\n"),
        Some("/readyz") => match ask(Request::Status {}, inputs).await {
            Some(Reply::Ready {}) => response("200 OK", "text/plain", "ok\n"),
            Some(Reply::Refused { reason, .. }) => response("503 Service Unavailable", "text/plain", &(reason + "\n")),
            _ => response("503 Service Unavailable", "text/plain", "terwayd is ending\n"),
        },
        Some(_) => response("404 Not Found", "text/plain", "there are /metrics, /healthz and /readyz\n"),
        None => response("400 Bad Request", "text/plain", "only GET is answered\n"),
    }
}

async fn ask(request: Request, inputs: &Sender<Input>) -> Option<Reply> {
    let (answer, answered) = bounded(1);
    inputs.send(Input::Ask { request, answer }).await.ok()?;
    answered.recv().await.ok()
}

fn response(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_of_a_get_is_heard() {
        assert_eq!(asked(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Some("/metrics"));
        assert_eq!(asked(b"GET /metrics?a=b HTTP/1.1\r\n\r\n"), Some("/metrics"));
        for odd in [&b"POST /metrics HTTP/1.1\r\n\r\n"[..], b"GET\r\n\r\n", b"\r\n\r\n", b"\xff /x\r\n\r\n"] {
            assert_eq!(asked(odd), None, "{odd:?}");
        }
    }
}

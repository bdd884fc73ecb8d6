//! A small HTTP/1.1 server for the simulators: threads, keep-alive, chunked streams, TLS, faults on purpose, a clean stop.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Request line and headers together.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: usize = 8 << 20;

/// A running server. Dropping it closes the listener and every connection and waits for all its threads.
pub struct Server {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
    house: Arc<House>,
    door: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves plain HTTP on a listener that may have been opened in any network namespace.
    pub fn start(listener: TcpListener, handler: impl Fn(Request) -> Response + Send + Sync + 'static) -> Server {
        Server::open(listener, None, Arc::new(handler))
    }

    /// Serves HTTPS; whether clients must show certificates is the configuration's matter.
    pub fn start_tls(
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        handler: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Server {
        Server::open(listener, Some(tls), Arc::new(handler))
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections there were.
    pub fn visits(&self) -> u64 {
        self.house.next.load(Ordering::Relaxed)
    }

    fn open(listener: TcpListener, tls: Option<Arc<ServerConfig>>, handler: Arc<Handler>) -> Server {
        let addr = listener.local_addr().expect("a listener has an address");
        let listener = Arc::new(listener);
        let house = Arc::new(House { tls, handler, ..House::default() });
        let door = thread::spawn({
            let (listener, house) = (listener.clone(), house.clone());
            move || admit(&listener, &house)
        });
        Server { addr, listener, house, door: Some(door) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.house.close();
        // Wakes the thread in accept(), also where nobody could connect to it from this namespace.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(door) = self.door.take() {
            let _ = door.join();
        }
    }
}

type Handler = dyn Fn(Request) -> Response + Send + Sync;

/// What the threads of one server share.
struct House {
    tls: Option<Arc<ServerConfig>>,
    handler: Arc<Handler>,
    stopping: AtomicBool,
    next: AtomicU64,
    guests: Mutex<HashMap<u64, TcpStream>>,
    bell: Condvar,
}

impl Default for House {
    fn default() -> House {
        House {
            tls: None,
            handler: Arc::new(|_| Response::new(404)),
            stopping: AtomicBool::new(false),
            next: AtomicU64::new(0),
            guests: Mutex::default(),
            bell: Condvar::new(),
        }
    }
}

impl House {
    fn guests(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn enter(&self, stream: &TcpStream) -> io::Result<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let copy = stream.try_clone()?;
        let mut guests = self.guests();
        // Under the lock, so that `close` either sees the guest or the guest sees the closing.
        if self.stopping() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        guests.insert(id, copy);
        Ok(id)
    }

    fn close(&self) {
        let guests = self.guests();
        self.stopping.store(true, Ordering::SeqCst);
        for stream in guests.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.bell.notify_all();
    }

    /// Sleeps, unless the server stops meanwhile: then returns false at once.
    fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut guests = self.guests();
        while !self.stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            guests = self.bell.wait_timeout(guests, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

/// Accepts until the listener is shut down, then waits for those who are still inside.
fn admit(listener: &TcpListener, house: &Arc<House>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !house.stopping() {
        let Ok((stream, peer)) = listener.accept() else {
            house.sleep(Duration::from_millis(10));
            continue;
        };
        threads.retain(|t| !t.is_finished());
        threads.push(thread::spawn({
            let house = house.clone();
            move || host(&house, stream, peer)
        }));
    }
    for t in threads {
        let _ = t.join();
    }
}

fn host(house: &House, stream: TcpStream, peer: SocketAddr) {
    let Ok(id) = house.enter(&stream) else { return };
    let _ = stream.set_nodelay(true);
    // An error here is the client's going away, or the server's closing: nothing to tell anyone.
    let _ = Line::open(house, stream, peer).and_then(|mut line| converse(house, &mut line));
    house.guests().remove(&id);
}

/// Requests and answers on one connection until one side has had enough.
fn converse(house: &House, line: &mut Line) -> io::Result<()> {
    loop {
        let request = match read_request(line) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(Bad::Io(e)) => return Err(e),
            Err(Bad::Request(status, why)) => {
                let refusal = Response::text(status, why).header("Connection", "close");
                return answer(house, line, refusal, Shape { head: false, last: true, chunks: false }).map(|_| ());
            }
        };
        let shape = Shape { head: request.method == "HEAD", last: request.is_last(), chunks: request.minor > 0 };
        let response = (house.handler)(request);
        if !answer(house, line, response, shape)? {
            return Ok(());
        }
    }
}

/// A request, read whole.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// As it stood in the request line.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub peer: SocketAddr,
    /// The chain that the client showed over TLS, leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The minor version: HTTP/1.0 or HTTP/1.1.
    pub minor: u8,
}

impl Request {
    /// The target without its query, not decoded.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// What follows the `?`, not decoded.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, q)| q)
    }

    /// The query's pairs, decoded, in their order.
    pub fn params(&self) -> Vec<(String, String)> {
        form(self.query())
    }

    /// The first value of this name in the query, decoded.
    pub fn param(&self, name: &str) -> Option<String> {
        self.params().into_iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// The first header of this name (given in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn is_last(&self) -> bool {
        let said = self.header("connection").unwrap_or_default().to_ascii_lowercase();
        said.contains("close") || (self.minor == 0 && !said.contains("keep-alive"))
    }
}

/// Pairs of a query or a form, decoded: `+` and `%20` are a space.
pub fn form(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|p| !p.is_empty());
    pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(n, v)| (decode(n), decode(v))).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (*first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(hex_digit(*high) << 4 | hex_digit(*low));
                rest = after;
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex_digit(c: u8) -> u8 {
    char::from(c).to_digit(16).map_or(0, |d| d as u8)
}

/// What a handler answers.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
    /// Waits so long before the first byte.
    pub delay: Duration,
    pub fault: Option<Fault>,
}

pub enum Body {
    Bytes(Vec<u8>),
    /// Runs on the connection's thread and may write for as long as the client stays; sent chunked.
    Stream(Box<Stream>),
}

type Stream = dyn FnOnce(&mut Chunks) -> io::Result<()> + Send;

/// How an answer goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends in order, without a byte.
    Close,
    /// The connection is reset, without a byte.
    Reset,
    /// Nothing is said until the client goes away or the server stops.
    Silence,
    /// The head and so many bytes of the body, then the end; Content-Length promises the whole.
    Truncate(usize),
    /// The body comes in pieces of one byte with this pause after each.
    Dribble(Duration),
}

impl Response {
    pub fn new(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Body::Bytes(Vec::new()), delay: Duration::ZERO, fault: None }
    }

    pub fn text(status: u16, body: impl Into<String>) -> Response {
        Response::new(status).header("Content-Type", "text/plain; charset=utf-8").body(body.into().into_bytes())
    }

    pub fn json(status: u16, body: &serde_json::Value) -> Response {
        Response::new(status).header("Content-Type", "application/json").body(body.to_string().into_bytes())
    }

    pub fn stream(status: u16, stream: impl FnOnce(&mut Chunks) -> io::Result<()> + Send + 'static) -> Response {
        Response { body: Body::Stream(Box::new(stream)), ..Response::new(status) }
    }

    pub fn header(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: Vec<u8>) -> Response {
        self.body = Body::Bytes(body);
        self
    }

    pub fn after(mut self, delay: Duration) -> Response {
        self.delay = delay;
        self
    }

    pub fn fault(mut self, fault: Fault) -> Response {
        self.fault = Some(fault);
        self
    }
}

/// The open end of a streamed answer.
pub struct Chunks<'a> {
    house: &'a House,
    line: &'a mut Line,
    framed: bool,
}

impl Chunks<'_> {
    /// Sends one chunk at once. Fails once the client has gone or the server stops.
    pub fn send(&mut self, data: &[u8]) -> io::Result<()> {
        if self.house.stopping() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if data.is_empty() {
            return Ok(());
        }
        if !self.framed {
            return self.line.send(data);
        }
        let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
        self.line.send(&chunk)
    }

    /// Whether anyone still listens; asks without sending.
    pub fn alive(&self) -> bool {
        !self.house.stopping() && !self.line.hung_up()
    }

    /// Sleeps; false at once when the server stops.
    pub fn sleep(&self, time: Duration) -> bool {
        self.house.sleep(time)
    }
}

#[derive(Clone, Copy)]
struct Shape {
    /// The answer has no body, being to HEAD.
    head: bool,
    /// The connection ends after it.
    last: bool,
    /// The client understands chunks.
    chunks: bool,
}

/// Sends the answer; true when the connection goes on.
fn answer(house: &House, line: &mut Line, response: Response, shape: Shape) -> io::Result<bool> {
    if !response.delay.is_zero() && !house.sleep(response.delay) {
        return Ok(false);
    }
    match response.fault {
        Some(Fault::Close) => return Ok(false),
        Some(Fault::Reset) => {
            rustix::net::sockopt::set_socket_linger(&line.raw, Some(Duration::ZERO))?;
            line.reset = true;
            return Ok(false);
        }
        Some(Fault::Silence) => {
            while !line.hung_up() && house.sleep(Duration::from_millis(10)) {}
            return Ok(false);
        }
        _ => {}
    }
    let fault = response.fault;
    let Response { status, headers, body, .. } = response;
    let bodyless = shape.head || status == 204 || status == 304;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in &headers {
        head += &format!("{name}: {value}\r\n");
    }
    match body {
        Body::Bytes(bytes) => {
            if status != 204 && status != 304 {
                head += &format!("Content-Length: {}\r\n", bytes.len());
            }
            let bytes = if bodyless { Vec::new() } else { bytes };
            send_bytes(house, line, head, &bytes, fault)?;
            Ok(!shape.last && !matches!(fault, Some(Fault::Truncate(_))) && !says_close(&headers))
        }
        Body::Stream(stream) => {
            head += if shape.chunks { "Transfer-Encoding: chunked\r\n\r\n" } else { "Connection: close\r\n\r\n" };
            line.send(head.as_bytes())?;
            if bodyless {
                return Ok(!shape.last);
            }
            stream(&mut Chunks { house, line, framed: shape.chunks })?;
            if shape.chunks {
                line.send(b"0\r\n\r\n")?;
            }
            Ok(shape.chunks && !shape.last && !says_close(&headers))
        }
    }
}

fn says_close(headers: &[(String, String)]) -> bool {
    headers.iter().any(|(n, v)| n.eq_ignore_ascii_case("connection") && v.eq_ignore_ascii_case("close"))
}

fn send_bytes(house: &House, line: &mut Line, head: String, body: &[u8], fault: Option<Fault>) -> io::Result<()> {
    let mut bytes = (head + "\r\n").into_bytes();
    match fault {
        Some(Fault::Truncate(n)) => {
            bytes.extend_from_slice(&body[..n.min(body.len())]);
            line.send(&bytes)
        }
        Some(Fault::Dribble(pause)) => {
            line.send(&bytes)?;
            for byte in body {
                line.send(&[*byte])?;
                if !house.sleep(pause) {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
            Ok(())
        }
        _ => {
            bytes.extend_from_slice(body);
            line.send(&bytes)
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

/// One connection: the bytes, and the socket below them.
struct Line {
    bytes: BufReader<Bytes>,
    raw: TcpStream,
    peer: SocketAddr,
    reset: bool,
}

enum Bytes {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Line {
    fn open(house: &House, stream: TcpStream, peer: SocketAddr) -> io::Result<Line> {
        let raw = stream.try_clone()?;
        let bytes = match &house.tls {
            None => Bytes::Plain(stream),
            Some(tls) => {
                let session = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
                Bytes::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        };
        Ok(Line { bytes: BufReader::new(bytes), raw, peer, reset: false })
    }

    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        match self.bytes.get_mut() {
            Bytes::Plain(s) => s.write_all(data),
            Bytes::Tls(s) => s.write_all(data).and_then(|()| s.flush()),
        }
    }

    /// Whether the client has closed its side. A client that sends more meanwhile has not.
    fn hung_up(&self) -> bool {
        let mut byte = [0u8; 1];
        match rustix::net::recv(&self.raw, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((n, _)) => n == 0,
            Err(e) => e != rustix::io::Errno::AGAIN && e != rustix::io::Errno::INTR,
        }
    }

    fn certificates(&self) -> Vec<CertificateDer<'static>> {
        match self.bytes.get_ref() {
            Bytes::Plain(_) => Vec::new(),
            Bytes::Tls(s) => {
                s.conn.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect()
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.reset {
            return;
        }
        if let Bytes::Tls(s) = self.bytes.get_mut() {
            s.conn.send_close_notify();
            let _ = s.flush();
        }
        let _ = self.raw.shutdown(Shutdown::Both);
    }
}

impl Read for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Bytes::Plain(s) => s.read(buf),
            Bytes::Tls(s) => s.read(buf),
        }
    }
}

/// Why a request could not be read.
enum Bad {
    Io(io::Error),
    /// The status to answer and the words with it.
    Request(u16, &'static str),
}

impl From<io::Error> for Bad {
    fn from(e: io::Error) -> Bad {
        Bad::Io(e)
    }
}

const MALFORMED: Bad = Bad::Request(400, "malformed request");

/// `None` where the client closed between two requests.
fn read_request(line: &mut Line) -> Result<Option<Request>, Bad> {
    let mut room = MAX_HEAD;
    let Some(first) = read_line(line, &mut room)? else { return Ok(None) };
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = words[..] else { return Err(MALFORMED) };
    let minor = match version {
        "HTTP/1.1" => 1,
        "HTTP/1.0" => 0,
        _ => return Err(MALFORMED),
    };
    let mut request = Request {
        method: method.into(),
        target: target.into(),
        headers: read_headers(line, &mut room)?,
        body: Vec::new(),
        peer: line.peer,
        certificates: line.certificates(),
        minor,
    };
    request.body = read_body(line, &request)?;
    Ok(Some(request))
}

fn read_line(line: &mut Line, room: &mut usize) -> Result<Option<String>, Bad> {
    let mut bytes = Vec::new();
    let limit = *room as u64 + 1;
    Read::by_ref(&mut line.bytes).take(limit).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    *room = room.checked_sub(bytes.len()).ok_or(Bad::Request(431, "request head too large"))?;
    let text = bytes.strip_suffix(b"\r\n").ok_or(MALFORMED)?;
    String::from_utf8(text.to_vec()).map(Some).map_err(|_| MALFORMED)
}

fn read_headers(line: &mut Line, room: &mut usize) -> Result<Vec<(String, String)>, Bad> {
    let mut headers = Vec::new();
    loop {
        let text = read_line(line, room)?.ok_or(MALFORMED)?;
        if text.is_empty() {
            return Ok(headers);
        }
        let (name, value) = text.split_once(':').ok_or(MALFORMED)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
    }
}

fn read_body(line: &mut Line, request: &Request) -> Result<Vec<u8>, Bad> {
    let chunked = request.header("transfer-encoding").is_some_and(|e| e.eq_ignore_ascii_case("chunked"));
    let length = match request.header("content-length") {
        Some(text) => text.parse::<usize>().map_err(|_| MALFORMED)?,
        None => 0,
    };
    if length > MAX_BODY {
        return Err(Bad::Request(413, "request body too large"));
    }
    if request.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        line.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if chunked {
        return read_chunks(line);
    }
    let mut body = vec![0; length];
    line.bytes.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(line: &mut Line) -> Result<Vec<u8>, Bad> {
    let mut body = Vec::new();
    loop {
        let mut room = 1024;
        let text = read_line(line, &mut room)?.ok_or(MALFORMED)?;
        let size = text.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| MALFORMED)?;
        if size > MAX_BODY - body.len() {
            return Err(Bad::Request(413, "request body too large"));
        }
        if size == 0 {
            let mut room = MAX_HEAD;
            read_headers(line, &mut room)?;
            return Ok(body);
        }
        let start = body.len();
        body.resize(start + size, 0);
        line.bytes.read_exact(&mut body[start..])?;
        if read_line(line, &mut 2)?.as_deref() != Some("") {
            return Err(MALFORMED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    /// Says this on a new connection and hears all that comes back until it ends.
    fn say(server: &Server, text: &str) -> String {
        let mut s = TcpStream::connect(server.addr()).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        s.write_all(text.as_bytes()).unwrap();
        let mut heard = Vec::new();
        let _ = s.read_to_end(&mut heard);
        String::from_utf8(heard).unwrap()
    }

    fn echo() -> Server {
        Server::start(listen(), |r| {
            let text = format!("{} {} {:?}", r.method, r.path(), String::from_utf8_lossy(&r.body));
            Response::text(200, text)
        })
    }

    #[test]
    fn two_requests_share_a_connection() {
        let heard = say(
            &echo(),
            "GET /a HTTP/1.1\r\n\r\nPOST /b?x=1 HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        );
        assert_eq!(heard.matches("HTTP/1.1 200 OK").count(), 2);
        assert!(heard.contains(r#"GET /a """#) && heard.ends_with(r#"POST /b "hi""#), "{heard}");
    }

    #[test]
    fn a_chunked_request_is_put_together() {
        let request =
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert!(say(&echo(), request).ends_with(r#"PUT / "abcde""#));
    }

    #[test]
    fn what_is_too_large_or_malformed_is_refused() {
        let server = echo();
        for (request, status) in [
            (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)), "431"),
            ("POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n".into(), "413"),
            ("nonsense\r\n\r\n".into(), "400"),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n".into(), "400"),
        ] {
            let heard = say(&server, &request);
            // The kernel may reset the connection of a client that sent more than was read; then nothing is heard.
            assert!(heard.is_empty() || heard.starts_with(&format!("HTTP/1.1 {status} ")), "{heard}");
        }
    }

    #[test]
    fn a_stream_is_sent_as_it_is_written() {
        let server = Server::start(listen(), |_| {
            Response::stream(200, |chunks| {
                chunks.send(b"one")?;
                chunks.sleep(Duration::from_millis(20));
                chunks.send(b"two, longer than")
            })
        });
        let heard = say(&server, "GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        assert!(heard.ends_with("\r\n\r\n3\r\none\r\n10\r\ntwo, longer than\r\n0\r\n\r\n"), "{heard}");
        let heard = say(&server, "GET / HTTP/1.0\r\n\r\n");
        assert!(heard.ends_with("\r\n\r\nonetwo, longer than"), "{heard}");
    }

    #[test]
    fn faults_do_what_they_say() {
        let server = Server::start(listen(), |r| {
            let fault = match r.path() {
                "/close" => Fault::Close,
                "/reset" => Fault::Reset,
                "/dribble" => Fault::Dribble(Duration::from_millis(1)),
                _ => Fault::Truncate(2),
            };
            Response::text(200, "abcd").fault(fault)
        });
        assert_eq!(say(&server, "GET /close HTTP/1.1\r\n\r\n"), "");
        assert_eq!(say(&server, "GET /reset HTTP/1.1\r\n\r\n"), "");
        assert!(say(&server, "GET /truncate HTTP/1.1\r\n\r\n").ends_with("Content-Length: 4\r\n\r\nab"));
        assert!(say(&server, "GET /dribble HTTP/1.1\r\nConnection: close\r\n\r\n").ends_with("\r\n\r\nabcd"));
    }

    #[test]
    fn dropping_the_server_ends_streams_silences_and_idle_connections() {
        let heard = Arc::new(AtomicU64::new(0));
        let count = heard.clone();
        let server = Server::start(listen(), move |r| {
            count.fetch_add(1, Ordering::Relaxed);
            match r.path() {
                "/stream" => Response::stream(200, |chunks| {
                    while chunks.alive() {
                        chunks.sleep(Duration::from_secs(60));
                    }
                    Ok(())
                }),
                "/late" => Response::new(200).after(Duration::from_secs(60)),
                _ => Response::new(200).fault(Fault::Silence),
            }
        });
        let addr = server.addr();
        let mut clients: Vec<TcpStream> = ["/stream", "/late", "/silence", ""]
            .iter()
            .map(|path| {
                let mut s = TcpStream::connect(addr).unwrap();
                let request = if path.is_empty() { String::new() } else { format!("GET {path} HTTP/1.1\r\n\r\n") };
                s.write_all(request.as_bytes()).unwrap();
                s
            })
            .collect();
        // A connection that ends before all of its words were read is reset.
        let start = Instant::now();
        while (server.visits(), heard.load(Ordering::Relaxed)) != (4, 3) {
            assert!(start.elapsed() < Duration::from_secs(20), "they are all served");
            thread::sleep(Duration::from_millis(5));
        }
        let start = Instant::now();
        drop(server);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        for s in &mut clients {
            s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut rest = Vec::new();
            s.read_to_end(&mut rest).unwrap();
        }
        assert!(TcpStream::connect(addr).is_err());
    }

    #[test]
    fn a_stream_notices_that_its_client_has_gone() {
        let (tell, told) = std::sync::mpsc::channel();
        let tell = Mutex::new(tell);
        let server = Server::start(listen(), move |_| {
            let tell = tell.lock().unwrap().clone();
            Response::stream(200, move |chunks| {
                while chunks.alive() {
                    chunks.sleep(Duration::from_millis(5));
                }
                tell.send(()).map_err(io::Error::other)
            })
        });
        let mut s = TcpStream::connect(server.addr()).unwrap();
        s.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(s);
        told.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn the_server_speaks_tls() {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let der = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let tls = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], der)
            .unwrap();
        let server = Server::start_tls(listen(), Arc::new(tls), |r| Response::text(200, r.path().to_string()));

        let mut roots = rustls::RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let session = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
        let mut s = StreamOwned::new(session, TcpStream::connect(server.addr()).unwrap());
        s.write_all(b"GET /tls HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut heard = String::new();
        s.read_to_string(&mut heard).unwrap();
        assert!(heard.ends_with("\r\n\r\n/tls"), "{heard}");
    }

    #[test]
    fn escapes_and_plus_signs_are_decoded() {
        let pairs = form("a=1+2%203&b=%E8%8A%82&c&d=100%&e=%zz");
        let want = [("a", "1 2 3"), ("b", "节"), ("c", ""), ("d", "100%"), ("e", "%zz")];
        assert_eq!(pairs, want.map(|(n, v)| (n.to_string(), v.to_string())));
    }
}

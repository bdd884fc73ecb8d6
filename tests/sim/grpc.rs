//! A gRPC client just large enough for unary calls over a unix socket, and the protobuf wire format underneath.
//!
//! One connection carries one call. HTTP/2 is spoken with prior knowledge (RFC 9113); headers go out as plain literals,
//! and of those that come back only `grpc-status` and `grpc-message` are of interest (HPACK, RFC 7541).

use std::fmt;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The answer of a server that did not do as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// gRPC status code: 2 unknown, 5 not found, 14 unavailable; also what we say when the server cannot be reached.
    pub code: u32,
    pub message: String,
}

const UNAVAILABLE: u32 = 14;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grpc status {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Status {}

impl From<Error> for Status {
    fn from(e: Error) -> Status {
        Status { code: UNAVAILABLE, message: e.to_string() }
    }
}

/// Calls `/service/Method` of the server at the socket and waits at most `patience` for each piece of its answer.
pub fn call(
    socket: &Path,
    method: &str,
    request: &Message,
    patience: Duration,
) -> std::result::Result<Vec<u8>, Status> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&opening(method, &request.0))?;
    let answer = read_answer(&mut stream)?;
    let status = status(&answer.headers)?;
    if status.code != 0 {
        return Err(status);
    }
    match answer.data.get(5..) {
        Some(message) if answer.data[0] == 0 => Ok(message.to_vec()),
        _ => Err(malformed("no message in the answer, or a compressed one").into()),
    }
}

// HTTP/2 ------------------------------------------------------------------------------------------------------------

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const WINDOW: u32 = 1 << 24;

struct Answer {
    headers: Vec<u8>,
    data: Vec<u8>,
}

/// All that a client says when its request is known from the start.
fn opening(method: &str, message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    assert!(body.len() <= 16384, "a request fits one HTTP/2 frame");

    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // No dynamic header table (1: 0), no pushes (2: 0), a wide stream window (4).
    let mut settings = vec![0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 4];
    settings.extend(WINDOW.to_be_bytes());
    frame(&mut out, SETTINGS, 0, 0, &settings);
    frame(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    frame(&mut out, HEADERS, END_HEADERS, 1, &request_headers(method));
    frame(&mut out, DATA, END_STREAM, 1, &body);
    out
}

fn request_headers(method: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0); // a literal that is not to be indexed, with its own name
        for text in [name, value] {
            assert!(text.len() < 127, "a length of one byte");
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    block
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

fn read_answer(stream: &mut UnixStream) -> Result<Answer> {
    let mut answer = Answer { headers: Vec::new(), data: Vec::new() };
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (head[3], head[4]);
        let mut reply = Vec::new();
        match kind {
            DATA => answer.data.extend(payload),
            // Blocks can be read as one: without a dynamic table none depends on what was said before.
            HEADERS | CONTINUATION => answer.headers.extend(payload),
            SETTINGS if flags & ACK == 0 => frame(&mut reply, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut reply, PING, ACK, 0, &payload),
            RST_STREAM | GOAWAY => return Err(malformed("the server broke off the call")),
            _ => {}
        }
        stream.write_all(&reply)?;
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return Ok(answer);
        }
    }
}

// HPACK -------------------------------------------------------------------------------------------------------------

fn status(block: &[u8]) -> Result<Status> {
    let mut status = Status { code: 2, message: "the answer bears no status".into() };
    for (name, value) in literals(block)? {
        match name.as_str() {
            "grpc-status" => status.code = value.parse().map_err(|_| malformed("grpc-status is no number"))?,
            "grpc-message" => status.message = percent_decoded(&value),
            _ => {}
        }
    }
    Ok(status)
}

/// The headers of a block that are spelt out, name and value; the gRPC ones are, as no static table has them.
fn literals(mut block: &[u8]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    while let Some(&first) = block.first() {
        // RFC 7541 6.1 to 6.3: indexed; literal, to be indexed; size of the table; literal, not to be indexed.
        let (prefix, literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = integer(&mut block, prefix)?;
        if literal {
            let name = if index == 0 { string(&mut block)? } else { String::new() };
            found.push((name, string(&mut block)?));
        }
    }
    Ok(found)
}

fn integer(block: &mut &[u8], prefix: u32) -> Result<usize> {
    let most = (1 << prefix) - 1;
    let mut value = usize::from(byte(block)?) & most;
    if value < most {
        return Ok(value);
    }
    for shift in [0, 7, 14] {
        let next = byte(block)?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("a header longer than any we expect"))
}

fn string(block: &mut &[u8]) -> Result<String> {
    let huffman = block.first().is_some_and(|b| b & 0x80 != 0);
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or_else(|| malformed("a header is cut off"))?;
    *block = rest;
    if huffman { huffman_decoded(text) } else { Ok(String::from_utf8_lossy(text).into_owned()) }
}

fn byte(block: &mut &[u8]) -> Result<u8> {
    let (&first, rest) = block.split_first().ok_or_else(|| malformed("a header is cut off"))?;
    *block = rest;
    Ok(first)
}

/// The printable characters of RFC 7541's code by the length of their codes. The code is canonical: within a length codes
/// count up in the order of the characters, so the lengths are all there is to know.
const HUFFMAN: [(u32, &str); 12] = [
    (5, "012aceiost"),
    (6, " %-./3456789=A_bdfghlmnpru"),
    (7, ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, "&*,;XZ"),
    (10, "!\"()?"),
    (11, "'+|"),
    (12, "#>"),
    (13, "\0$@[]~"),
    (14, "^}"),
    (15, "<`{"),
    (19, "\\"),
    (30, ""),
];

fn huffman_decoded(bytes: &[u8]) -> Result<String> {
    let (mut text, mut code, mut length) = (String::new(), 0u32, 0);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| u32::from(byte >> n) & 1)) {
        (code, length) = (code << 1 | bit, length + 1);
        if let Some(character) = character(code, length) {
            text.push(character);
            (code, length) = (0, 0);
        }
    }
    // What is left is padding: at most seven bits, all ones.
    if length < 8 { Ok(text) } else { Err(malformed("a header has a character that cannot be printed")) }
}

fn character(code: u32, length: u32) -> Option<char> {
    let (mut first, mut shorter) = (0, 0);
    for (bits, characters) in HUFFMAN {
        first <<= bits - shorter;
        if bits == length {
            return characters.chars().nth(code.checked_sub(first)? as usize);
        }
        first += characters.len() as u32;
        shorter = bits;
    }
    None
}

fn percent_decoded(text: &str) -> String {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escaped {
            Some(byte) if first == b'%' => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

// Protobuf ----------------------------------------------------------------------------------------------------------

/// A protobuf message in the making, field by field.
#[derive(Debug, Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn text(self, field: u32, text: &str) -> Message {
        self.bytes(field, text.as_bytes())
    }

    pub fn texts(self, field: u32, texts: &[&str]) -> Message {
        texts.iter().fold(self, |message, text| message.text(field, text))
    }

    pub fn message(self, field: u32, inner: &Message) -> Message {
        self.bytes(field, &inner.0)
    }

    /// One entry of a `map<string, string>`.
    pub fn entry(self, field: u32, key: &str, value: &str) -> Message {
        self.message(field, &Message::default().text(1, key).text(2, value))
    }

    pub fn number(mut self, field: u32, number: u64) -> Message {
        self.varint(u64::from(field) << 3);
        self.varint(number);
        self
    }

    fn bytes(mut self, field: u32, bytes: &[u8]) -> Message {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// The fields of a received message. An absent field reads as zero or empty, as protobuf has it.
pub struct Fields<'a>(Vec<(u32, Value<'a>)>);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    pub fn new(mut bytes: &'a [u8]) -> Fields<'a> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)),
                2 => Value::Bytes(take(&mut bytes)),
                kind => panic!("protobuf wire type {kind} is none that the CRI uses"),
            };
            fields.push(((key >> 3) as u32, value));
        }
        Fields(fields)
    }

    pub fn number(&self, field: u32) -> u64 {
        let number = self.0.iter().rev().find_map(|(n, value)| match value {
            Value::Number(number) if *n == field => Some(*number),
            _ => None,
        });
        number.unwrap_or_default()
    }

    pub fn text(&self, field: u32) -> String {
        String::from_utf8_lossy(self.all(field).last().unwrap_or_default()).into_owned()
    }

    pub fn message(&self, field: u32) -> Fields<'a> {
        Fields::new(self.all(field).last().unwrap_or_default())
    }

    pub fn messages(&self, field: u32) -> impl Iterator<Item = Fields<'a>> {
        self.all(field).map(Fields::new)
    }

    fn all(&self, field: u32) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter_map(move |(n, value)| match value {
            Value::Bytes(bytes) if *n == field => Some(*bytes),
            _ => None,
        })
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a protobuf number is whole");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn take<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = varint(bytes) as usize;
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

#[test]
fn headers_in_huffman_code_are_read_as_the_rfc_writes_them() {
    // RFC 7541, C.4.1 and C.4.3.
    let host = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
    assert_eq!(huffman_decoded(&host).unwrap(), "www.example.com");
    let value = [0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf];
    assert_eq!(huffman_decoded(&value).unwrap(), "custom-value");
    assert_eq!(percent_decoded("100%25 of %C3%A4 100%"), "100% of \u{e4} 100%");
}

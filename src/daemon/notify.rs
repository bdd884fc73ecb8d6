//! What the service manager is told (sd_notify(3)): that the daemon serves, what it waits for, that it lives, that it ends.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::reactor::Timer;

/// The daemon serves.
pub fn ready() {
    tell("READY=1\nSTATUS=serving");
}

/// What a person reads in `systemctl status`.
pub fn status(text: &str) {
    // A line each: what stands behind the first would be another word to the manager.
    tell(&format!("STATUS={}", text.replace('\n', " ")));
}

/// The daemon has begun to end.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Says that this thread, which does all that anybody waits for, is not stuck; for ever, where anybody listens.
pub async fn live() {
    let pid = std::env::var("WATCHDOG_PID").ok();
    let Some(pause) = pause(std::env::var("WATCHDOG_USEC").ok().as_deref(), pid.as_deref(), std::process::id()) else {
        return;
    };
    loop {
        tell("WATCHDOG=1");
        Timer::after(pause).await;
    }
}

/// How often a manager must hear of us that gives up after `usec`; none where it means another process, or does not watch.
fn pause(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let limit = usec?.parse().ok().filter(|usec| *usec > 0)?;
    Some(Duration::from_micros(limit) / 3)
}

/// A manager that does not listen is none of our troubles.
fn tell(words: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(e) = send(&socket, words) {
        log::debug!("tell {}: {e}", socket.display());
    }
}

/// A name that begins with `@` is an abstract one.
fn send(socket: &OsStr, words: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    // Whoever does not read must not keep us from working.
    from.set_nonblocking(true)?;
    from.send_to_addr(words.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut words = [0; 64];
        let length = socket.recv(&mut words).unwrap();
        String::from_utf8(words[..length].into()).unwrap()
    }

    #[test]
    fn the_manager_hears_us_at_either_kind_of_address() {
        let name = format!("terway-notify-{}", std::process::id());
        let abstract_one = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        send(format!("@{name}").as_ref(), "READY=1").unwrap();
        assert_eq!(heard(&abstract_one), "READY=1");

        let path = std::env::temp_dir().join(&name);
        let on_disk = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "WATCHDOG=1").unwrap();
        assert_eq!(heard(&on_disk), "WATCHDOG=1");
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), "WATCHDOG=1").is_err());
    }

    #[test]
    fn the_watchdog_is_fed_three_times_as_often_as_it_must_be() {
        assert_eq!(pause(Some("60000000"), Some("7"), 7), Some(Duration::from_secs(20)));
        assert_eq!(pause(Some("3000"), None, 7), Some(Duration::from_millis(1)));
        assert_eq!(pause(Some("60000000"), Some("8"), 7), None, "that is for another process");
        for odd in ["0", "", "never", "-1"] {
            assert_eq!(pause(Some(odd), None, 7), None, "{odd}");
        }
        assert_eq!(pause(None, None, 7), None);
    }
}

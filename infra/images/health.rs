//! Asks the process of the same container for its health, for the HEALTHCHECK of images that have neither shell nor curl.
//!
//! `health VARIABLE PATH` sends `GET PATH` to the address that stands in the environment variable, the one that the function
//! itself listens on, and exits with 0 for the status 200, else with 1. It is one file without dependencies, so that it is
//! compiled by rustc alone. It resolves no names and knows no TLS; Kubernetes does not need it, whose probes speak HTTP.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// Less than the timeout in the Containerfile, so that the reason is said.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [variable, path] = arguments.as_slice() else {
        return unhealthy("usage: health VARIABLE PATH");
    };
    let Ok(listen) = std::env::var(variable) else {
        return unhealthy(&format!("{variable} is not set; it must be HOST:PORT, as the function listens on"));
    };
    match address(&listen).map_err(|why| format!("{variable} {why}")).and_then(|address| ask(address, path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => unhealthy(&why),
    }
}

fn unhealthy(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::FAILURE
}

/// Where to ask what listens on `listen`: on all addresses means on loopback too.
fn address(listen: &str) -> Result<SocketAddr, String> {
    let listens: SocketAddr =
        listen.parse().map_err(|_| format!("is {listen:?}; it must be an address and a port, as 0.0.0.0:8080"))?;
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, listens.port()))
}

fn ask(address: SocketAddr, path: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("http://{address}{path}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    // What is wrong stands in the body; more of it than this is of no use in a log.
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    if is_ok(&answer) { Ok(()) } else { Err(format!("http://{address}{path} answered: {}", answer.trim_end())) }
}

/// Whether the status line says 200.
fn is_ok(answer: &str) -> bool {
    let mut words = answer.lines().next().unwrap_or_default().split(' ');
    matches!((words.next(), words.next()), (Some(version), Some("200")) if version.starts_with("HTTP/1."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn what_listens_everywhere_is_asked_on_loopback() {
        let rows = [
            ("0.0.0.0:8080", Ok("127.0.0.1:8080")),
            ("[::]:8080", Ok("[::1]:8080")),
            ("10.1.2.3:9464", Ok("10.1.2.3:9464")),
            ("localhost:8080", Err("0.0.0.0:8080")),
            ("8080", Err("0.0.0.0:8080")),
            ("", Err("0.0.0.0:8080")),
        ];
        for (listen, expected) in rows {
            match (address(listen), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected, "{listen}"),
                (Err(why), Err(hint)) => assert!(why.contains(hint), "{listen}: {why}"),
                (found, _) => panic!("{listen}: {found:?}"),
            }
        }
    }

    #[test]
    fn only_the_status_200_is_healthy() {
        let rows = [
            ("HTTP/1.1 200 OK\r\n\r\n{}", true),
            ("HTTP/1.0 200 OK\r\n\r\n", true),
            ("HTTP/1.1 200\r\n\r\n", true),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\nNATS: gone", false),
            ("HTTP/1.1 2000\r\n\r\n", false),
            ("SSH-2.0-OpenSSH_9.2\r\n", false),
            ("200 HTTP/1.1\r\n", false),
            ("", false),
        ];
        for (answer, healthy) in rows {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&request[..length]).into_owned()
            });
            assert_eq!(ask(address, "/health/ready").is_ok(), healthy, "{answer:?}");
            assert!(server.join().unwrap().starts_with("GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:"));
        }
    }

    #[test]
    fn nobody_listening_is_unhealthy() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(ask(address, "/health").unwrap_err().contains("/health"));
    }
}

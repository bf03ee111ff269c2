//! A network between two programs on one machine, which a test can spoil while it is used: one TCP proxy, each direction
//! with a condition of its own.
//!
//! It knows no protocol: it delays, holds and loses bytes, and breaks connections, as routers, cables and machines do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

/// The most that is read at once. Small, so that a slow direction trickles.
const CHUNK_BYTES: usize = 1024;
/// Chunks on their way in one direction; beyond it the sender has to wait, as for the buffers of a socket.
const CHUNKS_ON_THE_WAY: usize = 1024;

/// The condition of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Everything arrives at once.
    Open,
    /// Everything arrives so much later.
    Late(Duration),
    /// So many bytes a second.
    Slow(u64),
    /// Nothing arrives, nobody is told, and what was sent arrives when this has ended: a cable that was pulled.
    Held,
    /// So many bytes are gone, a chunk at least, and what follows arrives.
    Loses(u64),
}

/// The direction that bytes go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toward {
    Server,
    Client,
}

/// How connections end that are there when it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both sides get an RST.
    Reset,
    /// The server's side is closed; the client's stays open, and nobody reads it.
    HalfOpen,
}

#[derive(Clone, Copy, Debug)]
struct Condition {
    to_server: Flow,
    to_client: Flow,
    /// Counts the ends that were told, with the last of them.
    ends: (u64, End),
}

impl Condition {
    fn of(&self, toward: Toward) -> Flow {
        match toward {
            Toward::Server => self.to_server,
            Toward::Client => self.to_client,
        }
    }

    fn flow(&mut self, toward: Toward) -> &mut Flow {
        match toward {
            Toward::Server => &mut self.to_server,
            Toward::Client => &mut self.to_client,
        }
    }
}

/// A proxy in front of one port of loopback. Gone when dropped, connections included.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    condition: Arc<watch::Sender<Condition>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one that does no harm.
    pub(crate) async fn start(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let fine = Condition { to_server: Flow::Open, to_client: Flow::Open, ends: (0, End::Reset) };
        let condition = Arc::new(watch::Sender::new(fine));
        let shared = Arc::clone(&condition);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(client, target, Arc::clone(&shared)));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { port, condition, task }
    }

    /// Where clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Changes one direction, for connections that are there and those to come.
    pub(crate) fn set(&self, toward: Toward, flow: Flow) {
        self.condition.send_modify(|condition| *condition.flow(toward) = flow);
    }

    /// Changes both.
    pub(crate) fn set_both(&self, flow: Flow) {
        self.set(Toward::Server, flow);
        self.set(Toward::Client, flow);
    }

    /// Breaks every connection, with an RST for both sides.
    pub(crate) fn reset(&self) {
        self.end(End::Reset);
    }

    /// Closes every connection to the server and tells no client.
    pub(crate) fn half_open(&self) {
        self.end(End::HalfOpen);
    }

    fn end(&self, end: End) {
        self.condition.send_modify(|condition| condition.ends = (condition.ends.0 + 1, end));
    }

    /// Whether bytes that were to be lost are lost.
    pub(crate) fn has_lost(&self, toward: Toward) -> bool {
        !matches!(self.condition.borrow().of(toward), Flow::Loses(_))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(client: TcpStream, target: u16, condition: Arc<watch::Sender<Condition>>) {
    // Who is cut off cannot connect either; what is only slow can.
    let mut now = condition.subscribe();
    let ends = now.borrow().ends.0;
    if now.wait_for(|now| now.to_server != Flow::Held).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let end = {
        let both = async {
            tokio::select! {
                () = pump(&mut from_client, &mut to_server, Toward::Server, &condition) => {}
                () = pump(&mut from_server, &mut to_client, Toward::Client, &condition) => {}
            }
        };
        tokio::select! {
            () = both => return,
            told = now.wait_for(|now| now.ends.0 != ends) => told.map_or(End::Reset, |now| now.ends.1),
        }
    };
    match end {
        End::Reset => {
            for side in [to_client.as_ref(), to_server.as_ref()] {
                let _ = side.set_zero_linger();
            }
            // Not dropped, which would take leave of the other side.
            to_client.forget();
            to_server.forget();
        }
        End::HalfOpen => {
            drop((from_server, to_server));
            std::future::pending::<()>().await;
        }
    }
}

/// Carries bytes in one direction until one of its ends closes.
async fn pump(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, toward: Toward, condition: &watch::Sender<Condition>) {
    let (chunks, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_ON_THE_WAY);
    let flow = || condition.borrow().of(toward);
    let read = async move {
        let mut buffer = [0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = match flow() {
                Flow::Late(delay) => Instant::now() + delay,
                Flow::Loses(left) => {
                    let left = left.saturating_sub(length as u64);
                    let after = if left == 0 { Flow::Open } else { Flow::Loses(left) };
                    condition.send_modify(|condition| *condition.flow(toward) = after);
                    continue;
                }
                Flow::Open | Flow::Slow(_) | Flow::Held => Instant::now(),
            };
            if chunks.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        let mut now = condition.subscribe();
        while let Some((due, bytes)) = on_the_way.recv().await {
            sleep_until(due).await;
            if now.wait_for(|now| now.of(toward) != Flow::Held).await.is_err() {
                return;
            }
            if let Flow::Slow(bytes_per_second) = flow() {
                sleep(
                    Duration::from_secs(bytes.len() as u64)
                        / u32::try_from(bytes_per_second.max(1)).unwrap_or(u32::MAX),
                )
                .await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    // The writer ends when the reader has ended and everything has arrived.
    tokio::pin!(read, write);
    tokio::select! {
        () = &mut read => write.await,
        () = &mut write => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says back what it is told.
    async fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        port
    }

    /// Says a word and returns what comes back within a moment.
    async fn said(stream: &mut TcpStream, word: &str) -> Option<String> {
        stream.write_all(word.as_bytes()).await.unwrap();
        heard(stream, word.len()).await
    }

    async fn heard(stream: &mut TcpStream, length: usize) -> Option<String> {
        let mut answer = vec![0; length];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await;
        read.ok().map(|read| read.map_or_else(|error| error.kind().to_string(), |_| String::from_utf8(answer).unwrap()))
    }

    #[tokio::test]
    async fn each_condition_does_what_it_says() {
        let proxy = Proxy::start(echo().await).await;
        let connect = async || TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        let mut stream = connect().await;
        assert_eq!(said(&mut stream, "open").await.as_deref(), Some("open"));

        for toward in [Toward::Server, Toward::Client] {
            proxy.set(toward, Flow::Held);
            assert_eq!(said(&mut stream, "held").await, None, "{toward:?}");
            proxy.set(toward, Flow::Open);
            assert_eq!(heard(&mut stream, 4).await.as_deref(), Some("held"), "what was held arrives");

            proxy.set(toward, Flow::Loses(1));
            assert_eq!(said(&mut stream, "lost").await, None, "{toward:?}");
            assert!(proxy.has_lost(toward));
            assert_eq!(said(&mut stream, "next").await.as_deref(), Some("next"));
        }

        proxy.set(Toward::Client, Flow::Late(Duration::from_millis(600)));
        assert_eq!(said(&mut stream, "late").await, None);
        assert_eq!(
            crate::support::eventually("what is late", Duration::from_secs(10), async || heard(&mut stream, 4).await)
                .await,
            "late"
        );
        proxy.set(Toward::Client, Flow::Open);

        proxy.set(Toward::Server, Flow::Slow(8));
        assert_eq!(said(&mut stream, "slow").await, None);
        assert_eq!(
            crate::support::eventually("what is slow", Duration::from_secs(10), async || heard(&mut stream, 4).await)
                .await,
            "slow"
        );
        proxy.set(Toward::Server, Flow::Open);

        proxy.half_open();
        let mut after = connect().await;
        assert_eq!(said(&mut after, "after").await.as_deref(), Some("after"));
        assert_eq!(
            said(&mut stream, "half").await,
            None,
            "a connection that is half open takes everything and says nothing"
        );
        proxy.reset();
        assert_eq!(heard(&mut after, 1).await.as_deref(), Some("connection reset"));
    }
}

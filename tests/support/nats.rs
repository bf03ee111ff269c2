//! A real nats-server of the test's own, on free ports of loopback and with a store of its own.
//!
//! And one that only pretends, for what a test cannot get as a real one: an old version.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::certificates::Certificates;
use super::process::Tethered;
use super::{LOOK_EVERY, checkout, eventually};

/// How long a server may take until it answers; recovery of a store included.
const START: Duration = Duration::from_secs(30);
/// Two tests may choose the same port between the look and the bind.
const PORT_ATTEMPTS: u32 = 10;

/// The nats-server program, installed if need be.
///
/// # Panics
/// If `local/nats-server` cannot find or install one.
pub(crate) fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let output = Command::new(checkout().join("local/nats-server"))
            .arg("--path")
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("local/nats-server can be run");
        assert!(output.status.success(), "local/nats-server --path: {}", output.status);
        PathBuf::from(String::from_utf8(output.stdout).expect("a path in UTF-8").trim_end())
    };
    PROGRAM.get_or_init(find).clone()
}

/// A port that is free together with the one after it.
///
/// Below the range that the kernel takes outgoing ports from: a client that tries to reconnect to a port of that range
/// can meet itself there, and then the server cannot come back.
pub(crate) fn free_port_pair() -> u16 {
    loop {
        // Each hasher of the standard library has fresh keys: the one source of randomness that is always there.
        let random = RandomState::new().build_hasher().finish();
        let port = 20_000 + u16::try_from(random % 6_000).expect("below 6000") * 2;
        if [port, port + 1].into_iter().all(|port| StdTcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return port;
        }
    }
}

/// What a server is configured by.
#[derive(Debug)]
enum Configuration {
    /// `nats/local.conf`.
    Local { arguments: Vec<&'static str> },
    /// The `server.conf` of its own directory, with TLS, for clients that have a certificate or for all.
    Accounts { certificates: Certificates, verify: bool },
}

/// A running nats-server, or a cluster of them where `DARKROOM_TEST_CLUSTER` says how many. Killed when dropped.
#[derive(Debug)]
pub(crate) struct NatsServer {
    directory: TempDir,
    configuration: Configuration,
    members: Vec<Member>,
    /// Ports by which each member reaches each of the others, where these are not their own.
    ways: Vec<Vec<u16>>,
}

/// One process of it.
#[derive(Debug)]
struct Member {
    /// For clients; the one after it is for browsers.
    port: u16,
    /// For the other members.
    route_port: u16,
    process: Option<Tethered>,
}

/// How many servers a test gets that does not ask for less.
fn servers_wanted() -> usize {
    let wanted = std::env::var("DARKROOM_TEST_CLUSTER").ok();
    wanted.map_or(1, |text| text.parse().expect("DARKROOM_TEST_CLUSTER is a number of servers"))
}

impl NatsServer {
    /// Starts one with an empty store and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub(crate) async fn start() -> Self {
        Self::start_with(Configuration::Local { arguments: Vec::new() }, temporary_directory()).await
    }

    /// Starts one, whatever `DARKROOM_TEST_CLUSTER` says.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_one() -> Self {
        Self::start_members(1, Configuration::Local { arguments: Vec::new() }, temporary_directory()).await
    }

    /// Starts three as one cluster, whatever `DARKROOM_TEST_CLUSTER` says.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_cluster() -> Self {
        Self::start_members(3, Configuration::Local { arguments: Vec::new() }, temporary_directory()).await
    }

    /// Starts one in a directory that the test has prepared; its store is `store-0` there.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_in(directory: TempDir) -> Self {
        Self::start_members(1, Configuration::Local { arguments: Vec::new() }, directory).await
    }

    /// Starts one from a directory that `darkroom accounts` made.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_with_accounts(directory: TempDir, certificates: Certificates, verify: bool) -> Self {
        Self::start_with(Configuration::Accounts { certificates, verify }, directory).await
    }

    /// As [`Self::start`], of a server that somebody forgot to give JetStream.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn start_without_jetstream() -> Self {
        let configuration = Configuration::Local { arguments: vec!["--jetstream=false"] };
        Self::start_with(configuration, temporary_directory()).await
    }

    async fn start_with(configuration: Configuration, directory: TempDir) -> Self {
        let servers = match configuration {
            Configuration::Local { ref arguments } if arguments.is_empty() => servers_wanted(),
            Configuration::Local { .. } | Configuration::Accounts { .. } => 1,
        };
        Self::start_members(servers, configuration, directory).await
    }

    async fn start_members(servers: usize, configuration: Configuration, directory: TempDir) -> Self {
        let mut server = Self { directory, configuration, members: Vec::new(), ways: Vec::new() };
        for _ in 0..PORT_ATTEMPTS {
            let member = || Member { port: free_port_pair(), route_port: free_port_pair(), process: None };
            server.members = std::iter::repeat_with(member).take(servers).collect();
            if server.launch().await {
                return server;
            }
            server.kill();
        }
        panic!("the nats-server does not start\n{}", server.log());
    }

    /// For NATS clients: every server, separated by commas.
    pub(crate) fn url(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(|member| format!("nats://127.0.0.1:{}", member.port)).collect();
        urls.join(",")
    }

    /// Copies that its streams are to have.
    pub(crate) fn replicas(&self) -> Option<u32> {
        (self.members.len() > 1).then(|| u32::try_from(self.members.len()).expect("few servers"))
    }

    /// For browsers.
    pub(crate) fn websocket_url(&self) -> String {
        let scheme = if matches!(self.configuration, Configuration::Local { .. }) { "ws" } else { "wss" };
        format!("{scheme}://127.0.0.1:{}", self.port() + 1)
    }

    /// Where its configuration, log and store are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Makes it read its configuration again, and waits until it has.
    ///
    /// # Panics
    /// If it does not take it, with its log.
    pub(crate) async fn reload(&self) {
        let reloads = || self.log().matches("Reloaded server configuration").count();
        let before = reloads();
        self.processes().for_each(|process| process.signal(Signal::HUP));
        eventually("the server has reloaded", START, async || (reloads() > before).then_some(())).await;
    }

    /// The first port of [`Self::url`]; the one after it is that of [`Self::websocket_url`].
    pub(crate) fn port(&self) -> u16 {
        self.members.first().expect("a server").port
    }

    /// Where the other servers of a cluster reach the server `test-<index>`.
    pub(crate) fn route_port(&self, index: usize) -> u16 {
        self.members[index].route_port
    }

    /// From the next start on, the server `test-<i>` reaches `test-<j>` by the port `ways[i][j]` only.
    pub(crate) fn reach_each_other_by(&mut self, ways: Vec<Vec<u16>>) {
        self.ways = ways;
    }

    fn processes(&self) -> impl Iterator<Item = &Tethered> {
        self.members.iter().filter_map(|member| member.process.as_ref())
    }

    /// SIGKILL, to all of it at once; it is gone when this returns.
    pub(crate) fn kill(&mut self) {
        // Before any is waited for: who is left would notice, and say so.
        self.members
            .iter()
            .filter_map(|member| member.process.as_ref())
            .for_each(|process| process.signal(Signal::KILL));
        for mut process in self.members.iter_mut().filter_map(|member| member.process.take()) {
            process.kill();
        }
    }

    /// SIGKILL, to one server of a cluster, the first of [`Self::url`].
    pub(crate) fn kill_first(&mut self) {
        self.kill_member(0);
    }

    /// SIGKILL, to the server `test-<index>` of a cluster, if it runs.
    pub(crate) fn kill_member(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill();
        }
    }

    /// Starts what of it does not run, without a wait for it.
    pub(crate) fn revive(&mut self) {
        for index in 0..self.members.len() {
            if self.members[index].process.as_mut().is_none_or(|process| process.ended().is_some()) {
                self.members[index].process = Some(self.spawn(index));
            }
        }
    }

    /// Whether all of it runs and has a leader.
    pub(crate) async fn is_whole(&self) -> bool {
        for member in &self.members {
            if !has_leader(member.port).await {
                return false;
            }
        }
        true
    }

    /// Stops the server `test-<index>` of a cluster where it is.
    pub(crate) fn pause_member(&self, index: usize) {
        self.members[index].process.iter().for_each(|process| process.signal(Signal::STOP));
    }

    /// Stops it where it is: connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        self.processes().for_each(|process| process.signal(Signal::STOP));
    }

    /// Undoes [`Self::pause`].
    pub(crate) fn resume(&self) {
        self.processes().for_each(|process| process.signal(Signal::CONT));
    }

    /// Starts it again on the same ports and store, after SIGKILL if it still runs, and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        assert!(self.launch().await, "the nats-server does not start again\n{}", self.log());
    }

    /// What it said since the first start.
    pub(crate) fn log(&self) -> String {
        let of =
            |index| std::fs::read_to_string(self.directory.path().join(format!("log-{index}"))).unwrap_or_default();
        (0..self.members.len()).map(of).collect()
    }

    /// Gives a command the variables that its configuration reads.
    pub(crate) fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.environment_of(0, command)
    }

    fn environment_of<'a>(&self, index: usize, command: &'a mut Command) -> &'a mut Command {
        if let Configuration::Accounts { certificates, verify } = &self.configuration {
            command
                .env("DARKROOM_NATS_HOST", "127.0.0.1")
                .env("DARKROOM_NATS_CERT", quoted(&certificates.server.certificate))
                .env("DARKROOM_NATS_KEY", quoted(&certificates.server.key))
                .env("DARKROOM_NATS_CA", quoted(&certificates.authority))
                .env("DARKROOM_NATS_VERIFY", verify.to_string())
                .env("DARKROOM_NATS_ORIGINS", format!("[{ORIGIN:?}]"));
        }
        let Member { port, route_port, .. } = self.members[index];
        let way = |to: usize| self.ways.get(index).map_or(self.members[to].route_port, |ways| ways[to]);
        let routes: Vec<String> =
            (0..self.members.len()).map(|to| format!("\"nats://127.0.0.1:{}\"", way(to))).collect();
        command
            .env("DARKROOM_NATS_NAME", format!("test-{index}"))
            .env("DARKROOM_NATS_PORT", port.to_string())
            .env("DARKROOM_NATS_WEBSOCKET_PORT", (port + 1).to_string())
            .env("DARKROOM_NATS_CLUSTER_PORT", route_port.to_string())
            .env("DARKROOM_NATS_ROUTES", format!("[{}]", routes.join(", ")))
            .env("DARKROOM_NATS_STORE", quoted(&self.directory.path().join(format!("store-{index}"))))
    }

    /// What its TLS is made of.
    ///
    /// # Panics
    /// If it has none.
    pub(crate) fn certificates(&self) -> &Certificates {
        match &self.configuration {
            Configuration::Accounts { certificates, .. } => certificates,
            Configuration::Local { .. } => panic!("a server without TLS"),
        }
    }

    /// Starts the processes and waits until they answer; false if one ended instead.
    async fn launch(&mut self) -> bool {
        for index in 0..self.members.len() {
            self.members[index].process = Some(self.spawn(index));
        }
        let is_cluster = self.members.len() > 1;
        for member in &mut self.members {
            let (port, process) = (member.port, member.process.as_mut().expect("just started"));
            let ready = timeout(START, async {
                loop {
                    // Another server may answer on a port that ours could not get.
                    if process.ended().is_some() {
                        return false;
                    }
                    let answers = match self.configuration {
                        Configuration::Local { .. } if is_cluster => has_leader(port).await,
                        Configuration::Local { .. } => answers(port).await,
                        Configuration::Accounts { .. } => greets(port).await,
                    };
                    if answers && TcpStream::connect((Ipv4Addr::LOCALHOST, port + 1)).await.is_ok() {
                        return process.ended().is_none();
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            });
            if !ready.await.unwrap_or(false) {
                self.kill();
                return false;
            }
        }
        true
    }

    fn spawn(&self, index: usize) -> Tethered {
        let log = self.directory.path().join(format!("log-{index}"));
        let log = OpenOptions::new().create(true).append(true).open(log).expect("the log can be written");
        let mut command = Command::new(program());
        match &self.configuration {
            Configuration::Local { .. } if self.members.len() > 1 => {
                command.arg("-c").arg(checkout().join("nats/cluster/local.conf"));
                if !self.ways.is_empty() {
                    // Else they tell each other where they are, and meet past those ways.
                    command.args(["--cluster_advertise", "127.0.0.1:1"]);
                }
            }
            Configuration::Local { arguments } => {
                command.arg("-c").arg(checkout().join("nats/local.conf")).args(arguments);
            }
            Configuration::Accounts { .. } => {
                command.arg("-c").arg(self.directory.path().join("server.conf"));
            }
        }
        self.environment_of(index, &mut command)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle"))
            .stderr(log);
        Tethered::start(&mut command, Duration::ZERO).expect("the nats-server can be started")
    }
}

/// The page that may connect to a server with accounts.
pub(crate) const ORIGIN: &str = "https://app.example.com";

fn temporary_directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A path as the server reads it from a variable: as configuration, in which any path in quotes is one value.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whether a NATS server says who it is there, which it does before TLS.
async fn greets(port: u16) -> bool {
    let exchange = async {
        let mut line = String::new();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        BufReader::new(stream).read_line(&mut line).await.ok()?;
        line.starts_with("INFO ").then_some(())
    };
    matches!(timeout(Duration::from_secs(1), exchange).await, Ok(Some(())))
}

/// Whether a NATS server answers a PING there.
async fn answers(port: u16) -> bool {
    says(port, "PING\r\n", |line| line == "PONG").await
}

/// Whether JetStream answers there, which it does in a cluster that has a leader.
async fn has_leader(port: u16) -> bool {
    let ask = "SUB _INBOX.leader 1\r\nPUB $JS.API.STREAM.NAMES _INBOX.leader 0\r\n\r\n";
    says(port, ask, |line| line.starts_with('{') && !line.contains("\"error\"")).await
}

/// Whether a NATS server answers `words` with a line for which `is_answer` holds.
async fn says(port: u16, words: &str, is_answer: impl Fn(&str) -> bool) -> bool {
    let exchange = async {
        let mut stream = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?);
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        stream.write_all(format!("CONNECT {{\"verbose\":false}}\r\n{words}").as_bytes()).await.ok()?;
        loop {
            line.clear();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if is_answer(line.trim_end()) {
                return Some(());
            }
        }
    };
    matches!(timeout(Duration::from_secs(1), exchange).await, Ok(Some(())))
}

/// Waits until nothing listens on a port any more.
///
/// # Panics
/// If something still does after `deadline`.
pub(crate) async fn port_is_free(port: u16, deadline: Duration) {
    eventually("the port is free", deadline, async || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err().then_some(())
    })
    .await;
}

/// What looks like a nats-server to a client that connects, pings and asks, and knows nothing. Gone when dropped.
#[derive(Debug)]
pub(crate) struct FakeNatsServer {
    port: u16,
    task: JoinHandle<()>,
}

impl FakeNatsServer {
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for FakeNatsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that says it is nats-server 2.9.0 with JetStream, and answers requests as if nobody did.
pub(crate) async fn fake_old_server() -> FakeNatsServer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("a bound socket").port();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // A client that hangs up in between is none of our business.
            connections.spawn(async move {
                let _ = pretend(stream, port).await;
            });
        }
    });
    FakeNatsServer { port, task }
}

async fn pretend(stream: TcpStream, port: u16) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let info = format!(
        "INFO {{\"server_id\":\"NFAKE\",\"server_name\":\"old\",\"version\":\"2.9.0\",\"proto\":1,\"go\":\"go1.19\",\
         \"host\":\"127.0.0.1\",\"port\":{port},\"headers\":true,\"max_payload\":1048576,\"jetstream\":true,\
         \"client_id\":1,\"client_ip\":\"127.0.0.1\"}}\r\n"
    );
    stream.write_all(info.as_bytes()).await?;
    let mut subscriptions: HashMap<String, String> = HashMap::new();
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let tokens: Vec<&str> = line.split_ascii_whitespace().collect();
        match tokens.as_slice() {
            ["PING"] => stream.write_all(b"PONG\r\n").await?,
            ["SUB", subject, .., sid] => {
                subscriptions.insert((*sid).to_owned(), (*subject).to_owned());
            }
            ["PUB" | "HPUB", rest @ ..] => {
                let length = rest.last().and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
                // PUB <subject> [reply] <bytes>; HPUB has the bytes of the headers before them.
                let reply = rest.get(1).filter(|_| rest.len() == if tokens[0] == "PUB" { 3 } else { 4 });
                let answers: Vec<String> = reply
                    .into_iter()
                    .flat_map(|reply| {
                        let sids = subscriptions.iter().filter(|(_, subject)| matches(subject, reply));
                        let headers = "NATS/1.0 503\r\n\r\n";
                        sids.map(move |(sid, _)| format!("HMSG {reply} {sid} {0} {0}\r\n{headers}\r\n", headers.len()))
                    })
                    .collect();
                stream.read_exact(&mut vec![0; length + 2]).await?;
                stream.write_all(answers.concat().as_bytes()).await?;
            }
            _ => {}
        }
    }
}

/// Whether a subscription to `pattern` gets what is published to `subject`.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

//! Programs run by tests: with a time limit, or in the background with their output at hand.
//!
//! A program sees the environment of the test without the variables that configure Darkroom and what it talks to: those a
//! test sets itself.

use std::fmt::{self, Write as _};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{LOOK_EVERY, eventually};

/// Time that a program gets to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Prefixes of variables that would reach a program from the surroundings of the test.
const CONFIGURATION: [&str; 5] = ["AWS_", "DARKROOM_", "NATS_", "OTEL_", "RUST_LOG"];

/// A child that outlives neither this value nor, by whatever death, this process.
#[derive(Debug)]
pub(crate) struct Tethered {
    child: Child,
    /// A shell that ends the child when its standard input closes, which the kernel does for us when we are gone.
    watchdog: Child,
    grace: Duration,
    status: Option<ExitStatus>,
}

impl Tethered {
    /// Starts it. `grace` is the time between SIGTERM and SIGKILL; zero means SIGKILL at once.
    pub(crate) fn start(command: &mut Command, grace: Duration) -> std::io::Result<Self> {
        let mut child = command.spawn()?;
        let watchdog = Command::new("sh")
            .arg("-c")
            .arg(
                "trap '' HUP INT TERM; read -r _; left=$2
                while [ \"$left\" -gt 0 ] && kill -TERM \"$1\"; do sleep 1; left=$((left - 1)); done
                kill -KILL \"$1\"",
            )
            .args(["watchdog", &child.id().to_string(), &grace.as_secs().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match watchdog {
            Ok(watchdog) => Ok(Self { child, watchdog, grace, status: None }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, if there is still somebody to get it.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            waitid(WaitId::Pid(Pid::from_child(&self.child)), look).expect("a child can be waited for")?;
            // Once the child is reaped its id may be another's: the watchdog goes first.
            let _ = self.watchdog.kill();
            let _ = self.watchdog.wait();
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Tethered {
    fn drop(&mut self) {
        if self.ended().is_some() {
            return;
        }
        if !self.grace.is_zero() {
            // It may be stopped, and would then not see the other.
            self.signal(Signal::CONT);
            self.signal(Signal::TERM);
            for _ in 0..self.grace.as_millis() / LOOK_EVERY.as_millis() {
                if self.ended().is_some() {
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        self.kill();
    }
}

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// If it did not, with all that it said.
    pub(crate) fn expect_success(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}\n-- stdout\n{}\n-- stderr\n{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started or takes longer than `limit`.
pub(crate) async fn run(command: &mut Command, limit: Duration) -> Finished {
    let mut process = Background::start(command);
    let status = process.wait(limit).await;
    Finished { status, stdout: process.stdout(), stderr: process.stderr() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Stdout,
    Stderr,
}

#[derive(Default)]
struct Said {
    lines: Vec<(Source, String)>,
    /// Streams that are at their end.
    closed: u32,
}

/// A program in the background: SIGTERM and, if need be, SIGKILL when dropped.
pub(crate) struct Background {
    process: Tethered,
    said: Arc<Mutex<Said>>,
    news: Arc<Notify>,
}

impl Background {
    /// Starts it, with nothing on its standard input.
    ///
    /// # Panics
    /// If it cannot be started.
    pub(crate) fn start(command: &mut Command) -> Self {
        for (name, _) in std::env::vars_os() {
            let is_configuration = CONFIGURATION.iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
            if is_configuration && !command.get_envs().any(|(set, _)| set == name) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = match Tethered::start(command, GRACE) {
            Ok(process) => process,
            Err(error) => panic!("{command:?} cannot be started: {error}"),
        };
        let (said, news) = (Arc::<Mutex<Said>>::default(), Arc::new(Notify::new()));
        let stdout = process.child.stdout.take().expect("piped");
        let stderr = process.child.stderr.take().expect("piped");
        read_lines(Source::Stdout, stdout, Arc::clone(&said), Arc::clone(&news));
        read_lines(Source::Stderr, stderr, Arc::clone(&said), Arc::clone(&news));
        Self { process, said, news }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Stops it where it is, as a machine that hangs.
    pub(crate) fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Undoes [`Self::pause`].
    pub(crate) fn resume(&self) {
        self.process.signal(Signal::CONT);
    }

    /// Waits until it stands still: who is told to stop itself says so before it does.
    pub(crate) async fn wait_until_stopped(&self, deadline: Duration) {
        let stat = format!("/proc/{}/stat", self.id());
        eventually("the process stands still", deadline, async || {
            // `pid (name) state …`, where a name may hold anything but what follows its last parenthesis.
            let stat = std::fs::read_to_string(&stat).ok()?;
            stat.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
        })
        .await;
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits for its end, and for the end of its output.
    ///
    /// # Panics
    /// If it does not end within `deadline`, with all that it said.
    pub(crate) async fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let ended = timeout(deadline, async {
            loop {
                if let Some(status) = self.process.ended() {
                    return status;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        let Ok(status) = ended.await else { panic!("it runs longer than {deadline:?}\n{self:?}") };
        eventually("the output ends with the program", GRACE, async || (self.lock().closed == 2).then_some(())).await;
        status
    }

    /// The first line of standard output, past or to come, for which `predicate` holds.
    ///
    /// # Panics
    /// If none comes within `deadline` or before the output ends, with all that it said.
    pub(crate) async fn wait_for_line(&self, predicate: impl Fn(&str) -> bool, deadline: Duration) -> String {
        self.wait_for(Source::Stdout, predicate, deadline).await
    }

    /// As [`Self::wait_for_line`], of standard error.
    ///
    /// # Panics
    /// As there.
    pub(crate) async fn wait_for_log(&self, predicate: impl Fn(&str) -> bool, deadline: Duration) -> String {
        self.wait_for(Source::Stderr, predicate, deadline).await
    }

    async fn wait_for(&self, source: Source, predicate: impl Fn(&str) -> bool, deadline: Duration) -> String {
        let search = async {
            loop {
                let mut news = std::pin::pin!(self.news.notified());
                news.as_mut().enable();
                {
                    let said = self.lock();
                    let mut lines = said.lines.iter().filter(|(of, _)| *of == source);
                    if let Some((_, line)) = lines.find(|(_, line)| predicate(line)) {
                        return Some(line.clone());
                    }
                    if said.closed == 2 {
                        return None;
                    }
                }
                news.await;
            }
        };
        match timeout(deadline, search).await {
            Ok(Some(line)) => line,
            Ok(None) => panic!("it ended without the line that is waited for\n{self:?}"),
            Err(_) => panic!("the line that is waited for does not come within {deadline:?}\n{self:?}"),
        }
    }

    /// Standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.text(Source::Stdout)
    }

    /// Standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.text(Source::Stderr)
    }

    fn text(&self, source: Source) -> String {
        self.lock().lines.iter().filter(|(of, _)| *of == source).fold(String::new(), |mut text, (_, line)| {
            let _ = writeln!(text, "{line}");
            text
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "-- stdout\n{}\n-- stderr\n{}", self.stdout(), self.stderr())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "libtest shows it beside the panic")]
            {
                eprintln!("output of process {}:\n{self:?}", self.id());
            }
        }
    }
}

fn read_lines(source: Source, stream: impl Read + Send + 'static, said: Arc<Mutex<Said>>, news: Arc<Notify>) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            said.lock().unwrap_or_else(PoisonError::into_inner).lines.push((source, text));
            news.notify_waiters();
        }
        said.lock().unwrap_or_else(PoisonError::into_inner).closed += 1;
        news.notify_waiters();
    });
}

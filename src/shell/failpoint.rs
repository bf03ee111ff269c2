//! Points around a worker's actions at which a test can stop it: killed, hung, starved or failed.
//!
//! Every action has two, `<action>.before` and `<action>.after`, and the same for one job, `<action>.before/<job>`:
//!
//! | action | before it | after it |
//! |---|---|---|
//! | `claim` | the message is pulled | the record is ours, nobody was told |
//! | `store` | the images are made | the objects are stored, the record is not terminal |
//! | `record` | | the record is changed, the event is not published |
//! | `publish` | the event is on its way | the event is stored, the message not acknowledged |
//! | `letter` | | the dead letter is stored |
//! | `settle` | | the message is settled, the worker does not know |
//!
//! The variable `FAILPOINTS` says what happens there, in the words of the crate `fail`: `store.after=1*return(kill)` kills
//! once, `record.after/job-7=return(abort)` whenever it is that job's turn. `kill` is SIGKILL, `abort` SIGABRT, `stop` SIGSTOP
//! after which it may go on, `hang` never goes on, `error` is a fault of the world. `sleep(MS)` of the crate itself blocks
//! the thread, so it starves the others.
//!
//! Without the feature `failpoints` none of this is in the program.

use crate::job::{Fault, JobId};

/// `action`, with the two points around it.
#[cfg(not(feature = "failpoints"))]
pub(super) fn around<T, F>(_name: &'static str, _job: &JobId, action: F) -> F
where
    F: Future<Output = Result<T, Fault>>,
{
    action
}

/// `action`, with the two points around it.
#[cfg(feature = "failpoints")]
pub(super) fn around<T, F>(
    name: &'static str,
    job: &JobId,
    action: F,
) -> impl Future<Output = Result<T, Fault>> + use<T, F>
where
    F: Future<Output = Result<T, Fault>>,
{
    let job = job.clone();
    async move {
        armed::reach(&format!("{name}.before"), &job).await?;
        let outcome = action.await;
        armed::reach(&format!("{name}.after"), &job).await?;
        outcome
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::Once;

    use fail::FailScenario;
    use rustix::process::{Signal, getpid, kill_process};
    use tokio::signal::unix::{SignalKind, signal};

    use crate::job::{Fault, FaultCode, JobId};

    static SETUP: Once = Once::new();

    /// Does what `FAILPOINTS` says of the point, and of the point of this job.
    pub(super) async fn reach(point: &str, job: &JobId) -> Result<(), Fault> {
        // The scenario ends with the process, not with this function.
        SETUP.call_once(|| std::mem::forget(FailScenario::setup()));
        for name in [point.to_owned(), format!("{point}/{job}")] {
            let Some(what) = fail::eval(&name, |what| what.unwrap_or_default()) else { continue };
            tracing::warn!(point = name, what, "failpoint");
            match what.as_str() {
                "kill" => send(Signal::KILL, std::future::pending::<()>()).await,
                "stop" => {
                    let mut continued = signal(SignalKind::from_raw(Signal::CONT.as_raw())).map_err(|error| {
                        Fault::retry(FaultCode::EngineFailed, format!("SIGCONT cannot be listened for: {error}"))
                    })?;
                    send(Signal::STOP, continued.recv()).await;
                }
                "abort" => std::process::abort(),
                "hang" => std::future::pending().await,
                _ => return Err(Fault::retry(FaultCode::EngineFailed, format!("the point {name} was told to fail"))),
            }
        }
        Ok(())
    }

    /// Sends this process a signal and waits for what comes of it: this thread runs on for a while after it has sent one.
    async fn send<T>(signal: Signal, then: impl Future<Output = T>) {
        let _ = kill_process(getpid(), signal);
        then.await;
    }
}

//! Stores that fail, hang, answer late, and networks to them that trickle and break.

use std::time::Duration;

use darkroom::wire::event::EventKind;
use hyper::StatusCode;

use crate::laboratory::Laboratory;
use crate::proxy::{Flow, Proxy, Toward};
use crate::stack::{PATIENCE, started};
use crate::support::eventually;
use crate::support::s3::Trouble;

/// Short beside every trouble here.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_trouble_delays_images_and_neither_loses_nor_doubles_them() {
    let laboratory = Laboratory::start(LEASE).await;
    let _worker = laboratory.worker("only").await;
    let troubles = [
        ("failing", Trouble::Fails(StatusCode::INTERNAL_SERVER_ERROR)),
        ("late", Trouble::Late(LEASE * 2)),
        // Until the worker's own patience with the store ends, half a minute.
        ("hanging", Trouble::Hangs),
    ];
    for (name, trouble) in troubles {
        let asked = laboratory.s3.asked();
        laboratory.s3.set_trouble(Some(trouble));
        for index in 0..3 {
            laboratory.submit("t", &format!("{name}-{index}"), index).await;
        }
        eventually("all three to be stored", PATIENCE, async || (laboratory.s3.asked() >= asked + 3).then_some(()))
            .await;
        laboratory.s3.set_trouble(None);
    }
    // Leases are kept meanwhile, and nothing of it is the job's failure.
    laboratory.verdict(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickling_and_breaking_network_to_the_store_costs_no_image() {
    let laboratory = Laboratory::start(LEASE).await;
    let proxy = Proxy::start(laboratory.s3.port()).await;
    let _worker = started(&mut laboratory.worker_command_at("only", &laboratory.nats.url(), proxy.port())).await;
    proxy.set(Toward::Server, Flow::Slow(1_000));
    laboratory.submit("t", "slow", 0).await;
    laboratory.seen("t/slow", EventKind::Completed).await;

    laboratory.submit("t", "broken", 1).await;
    let asked = laboratory.s3.asked();
    eventually("a PUT in the middle", PATIENCE, async || (laboratory.s3.asked() > asked).then_some(())).await;
    proxy.reset();
    proxy.set(Toward::Server, Flow::Open);
    laboratory.seen("t/broken", EventKind::Completed).await;
    // An object may have been stored although its answer was lost: its bytes are the same.
    laboratory.verdict(1).await;
}

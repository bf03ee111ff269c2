//! Networks that are cut, in both directions or in one, and answers that get lost.

use std::time::Duration;

use darkroom::shell::bus::{self, PublishError};
use darkroom::shell::config::BusOptions;
use darkroom::wire::event::EventKind;

use crate::laboratory::{LONG, Laboratory, pictures, submitted};
use crate::proxy::{Flow, Proxy, Toward};
use crate::stack::{PATIENCE, started};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_is_replaced_and_comes_back_to_change_nothing() {
    let laboratory = Laboratory::start(Duration::from_secs(3)).await;
    let cuts: [(&str, &[Toward]); 3] = [
        ("both", &[Toward::Server, Toward::Client]),
        // The server hears nothing of it, and goes on delivering.
        ("to-server", &[Toward::Server]),
        // It is heard, and learns nothing of it.
        ("to-client", &[Toward::Client]),
    ];
    for (name, directions) in cuts {
        let proxy = Proxy::start(laboratory.nats.port()).await;
        let url = format!("nats://127.0.0.1:{}", proxy.port());
        // Before the worker, which would end for want of work while these are made on a slow machine.
        for index in 0..3 {
            laboratory.submit("t", &format!("{name}-{index}"), LONG).await;
        }
        let mut command = laboratory.worker_command_at(&format!("cut-{name}"), &url, laboratory.s3.port());
        let mut cut = started(command.args(["--exit-when-idle", "2s"])).await;
        laboratory.seen(&format!("t/{name}-0"), EventKind::Started).await;
        for direction in directions {
            proxy.set(*direction, Flow::Held);
        }
        let other = laboratory.worker(&format!("after-{name}")).await;
        for index in 0..3 {
            laboratory.seen(&format!("t/{name}-{index}"), EventKind::Completed).await;
        }
        proxy.set_both(Flow::Open);
        assert!(cut.wait(PATIENCE).await.success(), "{cut:?}");
        drop(other);
    }
    laboratory.verdict(3 * 3 * 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_in_the_middle_are_mended_and_lose_nothing() {
    let laboratory = Laboratory::start(Duration::from_secs(4)).await;
    let proxy = Proxy::start(laboratory.nats.port()).await;
    let url = format!("nats://127.0.0.1:{}", proxy.port());
    let _worker = started(&mut laboratory.worker_command_at("behind", &url, laboratory.s3.port())).await;
    for name in ["reset", "half-open"] {
        for index in 0..6 {
            laboratory.submit("t", &format!("{name}-{index}"), index).await;
        }
        laboratory.seen(&format!("t/{name}-0"), EventKind::Started).await;
        if name == "reset" {
            proxy.reset();
        } else {
            proxy.half_open();
        }
        for index in 0..6 {
            laboratory.seen(&format!("t/{name}-{index}"), EventKind::Completed).await;
        }
    }
    laboratory.verdict(2 * 6 * 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_confirmation_got_lost_is_sent_again_to_one_job() {
    let laboratory = Laboratory::start(Duration::from_secs(10)).await;
    let proxy = Proxy::start(laboratory.nats.port()).await;
    let options = BusOptions::open(format!("nats://127.0.0.1:{}", proxy.port()));
    let bus = bus::connect(&options, "client").await.unwrap();
    let request = &pictures()[0].request;
    laboratory.log.saw("t/lost", submitted(0));
    proxy.set(Toward::Client, Flow::Loses(1));
    let lost = laboratory.publish_by(&bus, "t", "lost", request).await;
    assert!(matches!(lost, Err(PublishError::Unconfirmed { .. })), "{lost:?}");
    assert!(proxy.has_lost(Toward::Client), "the confirmation was sent");
    let again = laboratory.publish_by(&bus, "t", "lost", request).await.unwrap();
    assert!(again.duplicate, "the stream had it");
    let _worker = laboratory.worker("only").await;
    let history = laboratory.verdict(0).await;
    assert_eq!(history.last_records()["t/lost"].stream_sequence, Some(again.sequence));
}

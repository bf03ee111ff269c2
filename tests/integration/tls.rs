//! TLS between clients and nats-server: what is not right is refused, and `darkroom doctor` says what it is.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::stack::{PATIENCE, program};
use crate::support::certificates::Certificates;
use crate::support::nats::NatsServer;
use crate::support::process::{Finished, run};
use crate::tenants::Platform;

async fn doctor(command: &mut Command) -> Finished {
    run(command.arg("doctor"), PATIENCE).await
}

fn expect_problem(finished: &Finished, found: &str, remedy: &str) {
    assert_eq!(finished.status.code(), Some(1), "{finished}");
    assert!(finished.stdout.contains(found) && finished.stdout.contains(remedy), "{found}, {remedy}: {finished}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_from_another_authority_is_refused() {
    let platform = Platform::start_bare(false).await;
    let others = Certificates::make();
    let good = doctor(&mut platform.command("darkroom", "acme")).await;
    assert!(good.status.success(), "{good}");
    let wrong = doctor(platform.command("darkroom", "acme").env("NATS_CA", &others.authority)).await;
    expect_problem(&wrong, "no TLS with the NATS server", "--nats-ca");
    assert!(wrong.stdout.contains("certificate"), "{wrong}");
    // Without an authority of ours, those of the system: they do not know it either.
    let unnamed = doctor(platform.command("darkroom", "acme").env_remove("NATS_CA")).await;
    expect_problem(&unnamed, "no TLS with the NATS server", "--nats-ca");
    // The right certificate of another host.
    let url = platform.nats.url().replace("127.0.0.1", "127.0.0.2");
    let elsewhere = doctor(platform.command("darkroom", "acme").env("NATS_URL", url)).await;
    assert_eq!(elsewhere.status.code(), Some(1), "{elsewhere}");
    let missing = doctor(platform.command("darkroom", "acme").env("NATS_CA", Path::new("/nowhere/ca.pem"))).await;
    expect_problem(&missing, "no TLS", "--nats-ca");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_is_refused_by_either_side() {
    let platform = Platform::start_bare(false).await;
    let address = platform.nats.url().replace("nats://", "");
    let mut plain = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut line = String::new();
    plain.read_line(&mut line).await.unwrap();
    assert!(line.contains("\"tls_required\":true"), "{line}");
    plain.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").await.unwrap();
    let mut answer = Vec::new();
    let end = timeout(Duration::from_secs(30), tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer)).await;
    assert!(end.is_ok(), "the server keeps the connection");
    assert!(!answer.windows(4).any(|word| word == b"PONG"));

    // And the other way: who names an authority does not talk to a server without TLS.
    let bare = NatsServer::start().await;
    for (variable, value) in
        [("NATS_CA", platform.nats.certificates().authority.display().to_string()), ("NATS_URL", tls(&bare))]
    {
        let mut command = Command::new(program("darkroom"));
        let refused = doctor(command.env("NATS_URL", bare.url()).env(variable, value)).await;
        expect_problem(&refused, "no TLS with the NATS server", "without TLS there is no --nats-ca");
    }
}

fn tls(server: &NatsServer) -> String {
    server.url().replace("nats://", "tls://")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_certificates_gets_them_from_its_own_authority_only() {
    let platform = Platform::start_bare(true).await;
    let own = platform.nats.certificates();
    let others = Certificates::make();
    let with = |certificates: &Certificates| {
        let mut command = platform.command("darkroom", "acme");
        command.env("NATS_CERT", &certificates.client.certificate).env("NATS_KEY", &certificates.client.key);
        command
    };
    let good = doctor(&mut with(own)).await;
    assert!(good.status.success(), "{good}");
    expect_problem(&doctor(&mut with(&others)).await, "no TLS with the NATS server", "--nats-cert");
    expect_problem(&doctor(&mut platform.command("darkroom", "acme")).await, "no TLS", "--nats-cert");
    let half = doctor(with(own).env_remove("NATS_KEY")).await;
    expect_problem(&half, "needs both --nats-cert and --nats-key", "both, or neither");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_unknown_to_the_server_is_told_so() {
    let platform = Platform::start_bare(false).await;
    let nobody = doctor(platform.command("darkroom", "acme").env_remove("NATS_NKEY")).await;
    expect_problem(&nobody, "refuses these credentials", "--nats-nkey");
    let seed = platform.nats.directory().join("unknown.nk");
    let mut add = Command::new(program("darkroom"));
    run(add.args(["tenant", "add", "unknown", "--model", "shapes", "--seed"]).arg(&seed), PATIENCE)
        .await
        .expect_success();
    let unknown = doctor(platform.command("darkroom", "acme").env("NATS_NKEY", &seed)).await;
    expect_problem(&unknown, "refuses these credentials", "reload");
    let no_seed =
        doctor(platform.command("darkroom", "acme").env("NATS_NKEY", platform.nats.directory().join("keys.conf")))
            .await;
    expect_problem(&no_seed, "keys.conf cannot be read", "holds a seed");
}

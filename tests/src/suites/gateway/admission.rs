//! Who is let in, by which TLS, and to what; on both sides.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{known, pair};
use crate::harness::{
    bed::Bed,
    cases::{Case, case},
    gateway::{Gateway, calls},
    molt::{SOON, Setup},
    process::{self, Background},
    registry::free_port,
    runtime::Kind,
    wait,
};

/// The tests.
pub(in crate::suites) const CASES: &[Case] = &[
    case("gateway::a_sandbox_obeys_nobody_whom_tls_does_not_prove", false_gateways),
    case("gateway::it_serves_nobody_without_a_name_and_nobody_under_another", strangers),
    case("gateway::a_token_is_bound_to_a_name_and_kept_as_a_hash", tokens),
    case("gateway::documents_are_bounded_and_checked_on_the_way_in", bounds),
    case("gateway::its_store_has_one_owner_and_is_never_misread", store),
];

fn false_gateways(bed: &Bed) -> anyhow::Result<()> {
    let (right, wrong) = (Gateway::start(bed, &["tested"])?, Gateway::start(bed, &["tested"])?);
    let mut cases: Vec<(&str, SocketAddr, Option<Background>)> = vec![("another authority", wrong.address, None)];
    let folder = |name: &str| right.config.join(name);
    for (what, credentials, version) in
        [("TLS 1.2", folder("server"), "-tls1_2"), ("a sandbox's certificate", folder("sandboxes/tested"), "-tls1_3")]
    {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut server = Command::new("openssl");
        server.args(["s_server", "-www", "-quiet", version, "-accept", &address.to_string()]);
        server.arg("-cert").arg(credentials.join("certificate.pem")).arg("-key").arg(credentials.join("key.pem"));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        cases.push((what, address, Some(Background::spawn(&mut server)?)));
    }
    for (what, address, _server) in cases {
        wait::until_ok(what, SOON, || {
            std::net::TcpStream::connect(address)?;
            Ok(())
        })?;
        let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
        let molt = calls(setup, &right.of("tested"), address, "poll")?.start()?;
        wait::until_ok("the refusal", SOON, || {
            let log = molt.sandbox.logs();
            ensure!(log.contains("failed to reach the gateway"), "{what}:\n{log}");
            Ok(())
        })?;
        ensure!(molt.version()?.0 == "v1");
    }
    ensure!(wrong.expect(0, &["get"])?.stdout.lines().count() == 1, "it was told something");
    Ok(())
}

fn strangers(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, _molt) = pair(bed, "poll")?;
    let elsewhere = Gateway::start(bed, &["tested"])?;
    // Credentials of this gateway for another sandbox; made while it runs.
    let mut init = Command::new(bed.molt()?);
    process::run(init.args(["gateway", "init"]).arg(&gateway.config).args(["--sandbox", "other"]), SOON)?;
    let (tested, other) = (gateway.of("tested"), gateway.of("other"));
    let operator = gateway.config.join("operators/admin");
    let nobody = bed.scratch("nobody")?;
    let status = |who, words: &[&str], path: &str| gateway.curl(who, words, path).map(|(status, _)| status);
    let put = ["--request", "PUT", "--header", "Content-Type: application/json", "--data", r#"{"rollback": {}}"#];
    for (who, words, path, wanted) in [
        (&nobody, &[][..], "/v1/sandboxes", 401),
        (&nobody, &[][..], "/v1/sandboxes/tested/desired", 401),
        (&nobody, &[][..], "/v1/openapi.json", 401),
        (&nobody, &["--header", "Authorization: Bearer x"][..], "/v1/sandboxes", 401),
        (&tested, &[][..], "/v1/sandboxes/tested/desired", 200),
        (&other, &[][..], "/v1/sandboxes/other/desired", 200),
        (&other, &[][..], "/v1/sandboxes/tested/desired", 403),
        (&other, &["--request", "POST", "--json", "{}"][..], "/v1/sandboxes/tested/reports", 403),
        (&tested, &put[..], "/v1/sandboxes/tested/desired", 403),
        (&tested, &[][..], "/v1/sandboxes/tested", 403),
        (&tested, &[][..], "/v1/sandboxes/tested/revisions/1", 403),
        (&tested, &[][..], "/v1/sandboxes", 403),
        (&operator, &[][..], "/v1/sandboxes/tested/desired", 403),
        (&operator, &[][..], "/v1/sandboxes", 200),
        (&operator, &[][..], "/v1/sandboxes/..%2f..%2fetc", 404),
        (&operator, &["--request", "DELETE"][..], "/v1/sandboxes", 405),
    ] {
        let mut words = words.to_vec();
        if words.contains(&"{}") {
            // A whole report, so that it is the name that is refused.
            let report = r#"{"apiVersion":"molt.dev/v1alpha1","store":"00000000000000000000000000000000","gateway":null,"revision":1,"settled":true,"update":null,"problem":null}"#;
            words = vec!["--request", "POST", "--header", "Content-Type: application/json", "--data", report];
        }
        let found = status(who, &words, path)?;
        ensure!(found == wanted, "{} {words:?} {path}: {found}, not {wanted}", who.display());
    }
    // What another authority vouches for does not come through TLS; nor does an older TLS, or none.
    let foreign = elsewhere.config.join("operators/admin");
    ensure!(gateway.curl(&foreign, &[], "/v1/sandboxes").is_err(), "a stranger's certificate");
    ensure!(gateway.curl(&operator, &["--tls-max", "1.2"], "/v1/sandboxes").is_err(), "TLS 1.2");
    let plain = format!("http://{}/v1/sandboxes", gateway.address);
    ensure!(
        process::output(Command::new("curl").args(["--silent", "--max-time", "10", &plain]), SOON)?.code != 0,
        "plain"
    );
    ensure!(gateway.json(&["get", "tested"])?["desired"]["revision"] == 0, "somebody was obeyed");
    Ok(())
}

fn tokens(bed: &Bed) -> anyhow::Result<()> {
    let gateway = Gateway::start(bed, &[])?;
    let store = gateway.config.join("store");
    let made = |words: &[&str]| -> anyhow::Result<String> {
        let mut command = Command::new(bed.molt()?);
        command.args(["gateway", "token", "--store"]).arg(&store).args(words);
        Ok(process::run(&mut command, SOON)?.stdout.trim().to_owned())
    };
    let (token, operator) = (made(&["tested"])?, made(&["ci", "--operator"])?);
    ensure!(token.len() == 64 && token != operator);
    let kept = fs::read_to_string(store.join("tokens.json"))?;
    ensure!(!kept.contains(&token) && !kept.contains(&operator), "tokens are kept in clear text");
    let setup = Setup::new(bed, Kind::Light, &bed.small("v1")?)?;
    let folder = setup.config.join("gateway");
    fs::create_dir_all(&folder)?;
    fs::copy(gateway.config.join("ca.pem"), folder.join("ca.pem"))?;
    fs::write(folder.join("token"), format!("{token}\n"))?;
    let spec = json!({
        "url": gateway.url(), "ca": "/etc/molt/gateway/ca.pem", "tokenFile": "/etc/molt/gateway/token",
        "wait": "2s", "retry": "1s",
    });
    let molt = setup.with("/gateway", spec).start()?;
    known(&gateway)?;
    // An operator with a token and nothing else.
    let config = bed.scratch("operator")?;
    fs::copy(gateway.config.join("ca.pem"), config.join("ca.pem"))?;
    fs::write(config.join("token"), &operator)?;
    let update = |image: &str| {
        let mut command = Command::new(bed.molt()?);
        command.args(["--gateway", &gateway.url(), "--gateway-config"]).arg(&config);
        process::output(command.args(["update", "tested", image]), SOON)
    };
    update(&bed.small("v2")?)?.ok()?;
    molt.serves("v2", 2)?;
    // Another token takes its place, by a link that is changed at once, as a mounted Secret does.
    let renewed = made(&["tested"])?;
    let mut tokens: Vec<Value> = serde_json::from_str(&fs::read_to_string(store.join("tokens.json"))?)?;
    tokens.remove(0);
    fs::write(folder.join("token.new"), &renewed)?;
    fs::rename(folder.join("token.new"), folder.join("token"))?;
    fs::write(store.join("tokens.new"), serde_json::to_vec(&tokens)?)?;
    fs::rename(store.join("tokens.new"), store.join("tokens.json"))?;
    update(&bed.small("v3")?)?.ok()?;
    molt.serves("v3", 3)?;
    // In no log, status or report.
    for text in [molt.sandbox.logs(), fs::read_to_string(gateway.config.join("log"))?, molt.status()?.to_string()] {
        ensure!(
            ![&token, &renewed, &operator].into_iter().any(|secret| text.contains(secret)),
            "a token is shown: {text}"
        );
    }
    molt.sound()
}

fn bounds(bed: &Bed) -> anyhow::Result<()> {
    let (gateway, _molt) = pair(bed, "poll")?;
    let operator = gateway.config.join("operators/admin");
    let ask = |body: &str| {
        let file = gateway.config.join("body");
        fs::write(&file, body)?;
        let data = format!("@{}", file.display());
        let words = ["--request", "PUT", "--header", "Content-Type: application/json", "--data-binary", &data];
        gateway.curl(&operator, &words, "/v1/sandboxes/tested/desired")
    };
    for (body, status) in [
        ("{", 400),
        ("[]", 400),
        ("{}", 400),
        (r#"{"image": "localhost/x:1", "teleport": 1}"#, 400),
        (r#"{"image": "localhost/x:1", "rollback": {}}"#, 400),
        (r#"{"rollback": {"to": -1}}"#, 400),
    ] {
        let (found, said) = ask(body)?;
        ensure!(found == status && said.contains("\"code\""), "{body}: {found} {said}");
    }
    ensure!(ask(&format!(r#"{{"image": "localhost/x:1", "policy": "{}"}}"#, "x".repeat(2 << 20)))?.0 == 413);
    let (status, _) = gateway.curl(&operator, &["--header", &format!("X: {}", "x".repeat(20_000))], "/v1/sandboxes")?;
    ensure!(status == 431, "{status}");
    let (status, _) = gateway.curl(
        &operator,
        &[
            "--header",
            "If-Match: \"0.7\"",
            "--request",
            "PUT",
            "--header",
            "Content-Type: application/json",
            "--data",
            r#"{"rollback": {}}"#,
        ],
        "/v1/sandboxes/tested/desired",
    )?;
    ensure!(status == 412, "{status}");
    ensure!(gateway.json(&["get", "tested"])?["desired"]["revision"] == 0);
    Ok(())
}

fn store(bed: &Bed) -> anyhow::Result<()> {
    let (mut gateway, molt) = pair(bed, "poll")?;
    let second = |store: &str| {
        let mut serve = Command::new(bed.molt()?);
        serve.args(["gateway", "serve", "--listen", "127.0.0.1:0", "--config"]).arg(&gateway.config);
        process::output(serve.arg("--store").arg(gateway.config.join(store)), SOON)
    };
    let said = second("store")?;
    ensure!(said.code == 1 && said.stderr.contains("another gateway has"), "{said:?}");
    gateway.want(&["rollback", "tested"])?;
    gateway.kill();
    // Damage is said, and no number is given out twice because of it.
    let record = gateway.config.join("store/sandboxes/tested.json");
    let whole = fs::read_to_string(&record)?;
    fs::write(&record, whole.get(..whole.len() / 2).context("half")?)?;
    let said = {
        let mut serve = Command::new(bed.molt()?);
        serve.args(["gateway", "serve", "--listen", "127.0.0.1:0", "--config"]).arg(&gateway.config);
        process::output(&mut serve, SOON)?
    };
    ensure!(said.code == 1 && said.stderr.contains("tested.json cannot be read"), "{said:?}");
    fs::write(&record, whole)?;
    gateway.restart()?;
    ensure!(gateway.json(&["get", "tested"])?["desired"]["revision"] == 1);
    molt.sound()
}

//! What is taken, what is refused and with which words.

use super::*;

/// The rest of a document after its head.
fn with(spec: &str) -> String {
    let body = spec.replace('\n', "\n  ");
    format!("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nmetadata: {{name: wa}}\nspec:\n  {body}\n")
}

const FULL: &str = r#"apiVersion: molt.dev/v1alpha1
kind: Sandbox
metadata: {name: whatsapp-daemon}
spec:
  image: registry.example.com/acme/daemon:1.4
  policy: {version: 1, filesystem_policy: {read_only: [/usr]}}
  state: [/sandbox/state, /var/lib/daemon]
  mounts:
    - {path: /data, readOnly: true}
    - {path: /var/run/secrets, carry: false}
  workload:
    command: [/usr/bin/node, server.js]
    args: ["--port", "8080"]
    env: [{name: A, value: "1"}, {name: B}]
    workingDir: /app
    user: "1000:2000"
    supplementalGroups: [3000]
    stopSignal: SIGQUIT
    stopGracePeriod: 30s
    tty: true
    completes: true
    oomScoreAdj: 100
    limits: {nofile: 1024, nproc: 200}
  health:
    startup: {exec: {command: [/bin/check]}, period: 100ms, failureThreshold: 30}
    readiness: {httpGet: {path: /ready, port: 8080}, successThreshold: 2}
    liveness: {tcpSocket: {port: 8080, host: "::1"}, initialDelay: 1s, period: 1s}
    monitor: 1m30s
    startupDeadline: 2m
  hooks:
    preStop: {exec: {command: [/bin/flush]}, timeout: 5s}
    onRollback: {exec: {command: [/bin/tell]}}
  update: {keep: 5, confirm: external, confirmDeadline: 1h, parallel: 4, reserve: 1GiB}
  registries:
    mirrors: {registry.example.com: [mirror.local:5000]}
    credentials: /etc/molt/config.json
    certificates: /etc/molt/ca
    insecure: ["localhost:5000"]
  api: {socket: /run/molt/other.sock}
  gateway:
    url: https://gateway.example.com:8443/fleet
    ca: /etc/molt/gateway/ca.pem
    certificate: /etc/molt/gateway/certificate.pem
    key: /etc/molt/gateway/key.pem
    tokenFile: /etc/molt/gateway/token
    listen: stream
    wait: 2m
    retry: 5m
    allowWider: true
"#;

#[test]
fn everything_that_can_be_written_is_read_and_written_the_same() {
    let spec = parse(FULL).unwrap();
    assert_eq!(spec.name, "whatsapp-daemon");
    assert_eq!(spec.health.monitor, Span::from_secs(90));
    assert_eq!(spec.workload.stop_signal.unwrap().number(), 3);
    let text = serde_saphyr::to_string(&spec.to_document()).unwrap();
    assert_eq!(parse(&text).unwrap(), spec, "{text}");
    let json = spec.to_document().to_string();
    assert_eq!(parse(&json).unwrap(), spec, "JSON is YAML too");
}

#[test]
fn a_document_with_nothing_in_it_is_the_default() {
    let spec = parse("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n").unwrap();
    assert_eq!(spec, Spec::default());
    assert_eq!(spec.state, ["/sandbox/state"]);
    assert_eq!(spec.api.socket, "/run/molt/molt.sock");
    assert!(spec.check().is_ok());
    let text = serde_saphyr::to_string(&spec.to_document()).unwrap();
    assert_eq!(parse(&text).unwrap(), spec, "{text}");
}

#[test]
fn a_section_left_empty_is_a_section_not_given() {
    assert_eq!(parse(&with("hooks:\nhealth:\nimage: ~")).unwrap(), Spec { name: "wa".into(), ..Spec::default() });
}

#[test]
fn the_word_unconfined_is_a_policy() {
    assert_eq!(parse(&with("policy: unconfined")).unwrap().policy, Some(PolicySource::Unconfined));
}

#[test]
fn claimed_paths_are_all_that_the_supervisor_reads() {
    let text = "policyFile: policy.yaml\nregistries: {credentials: /c/config.json, certificates: /c/ca}\n\
                watch: {annotations: {file: /c/notes}}";
    let spec = parse(&with(text)).unwrap();
    assert_eq!(spec.claimed_paths(), ["/c/config.json", "/c/ca", "policy.yaml", "/c/notes"]);
    assert!(Spec::default().claimed_paths().is_empty());
    let gateway = "gateway: {url: \"https://g\", ca: /g/ca, certificate: /g/c, key: /g/k, tokenFile: /t}";
    assert_eq!(parse(&with(gateway)).unwrap().claimed_paths(), ["/g/ca", "/g/c", "/g/k", "/t"]);
}

#[test]
fn secrets_in_the_environment_stay_out_of_debug_text() {
    let spec = parse(&with("workload: {env: [{name: TOKEN, value: hunter2}]}")).unwrap();
    assert!(!format!("{spec:?}").contains("hunter2"));
}

#[test]
fn all_faults_of_a_document_come_at_once() {
    let text =
        with("imgae: x\nstate: [relative, /proc/x]\nhealth:\n  monitor: 5\n  readiness: {}\nworkload:\n  tty: yes");
    let faults = parse(&text).unwrap_err();
    let lines: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "5:3: spec.imgae: unknown field; did you mean 'image'?",
            "6:11: spec.state[0]: must be an absolute path",
            "6:21: spec.state[1]: must not be in /proc",
            "8:14: spec.health.monitor: must be text: write \"5\" in quotes",
            "9:16: spec.health.readiness: takes exactly one of exec, httpGet, tcpSocket, notify; found 0",
            "11:10: spec.workload.tty: must be true or false",
        ]
    );
    let text =
        with("state: [relative, /proc/x]\nhealth: {monitor: 5s, readiness: {tcpSocket: {port: 1}}}\nupdate: {keep: 3}");
    assert_eq!(parse(&text).unwrap_err().0.len(), 3);
}

/// A spec section, and a part of the text it is refused with.
const BAD: &[(&str, &str)] = &[
    ("state: [state]", "5:11: spec.state[0]: must be an absolute path"),
    ("state: [/a/../b]", "spec.state[0]: must not hold '..'"),
    ("state: [/a//b/]", "spec.state[0]: must be written as '/a/b'"),
    ("state: [/]", "must not be '/'"),
    ("state: [/proc/x]", "must not be in /proc"),
    ("state: [/dev]", "must not be in /dev"),
    ("state: [/a, /a]", "spec.state[1]: is listed twice"),
    ("state: [/a, /a/b]", "spec.state[1]: overlaps '/a'"),
    ("state: /a", "spec.state: must be a list"),
    ("policy: {}\npolicyFile: p.yaml", "exclude each other"),
    ("policy: confined", "or the word 'unconfined'"),
    ("policy: {a: 1, a: 2}", "5:18: duplicate mapping key: a"),
    ("image: busybox", "name the registry too"),
    ("image: 5", "must be text"),
    ("verify: {default: []}", "spec.verify: not supported by this version"),
    ("gateway: {url: x, tokenFile: /t}", "spec.gateway.url: must begin with https://"),
    ("gateway: {url: \"http://g\", tokenFile: /t}", "spec.gateway.url: must begin with https://"),
    ("gateway: {url: \"https://:8443\", tokenFile: /t}", "spec.gateway.url: must name a host"),
    ("gateway: {url: \"https://u:p@g\", tokenFile: /t}", "without a user, a query or a fragment"),
    ("gateway: {url: \"https://g:99999/\", tokenFile: /t}", "spec.gateway.url: must have a port from 1 to 65535"),
    ("gateway: {url: \"https://g:0\", tokenFile: /t}", "must have a port from 1 to 65535"),
    ("gateway: {url: \"https://g:/fleet\", tokenFile: /t}", "must have a port from 1 to 65535"),
    ("gateway: {url: \"https://[::1]:+5\", tokenFile: /t}", "must have a port from 1 to 65535"),
    ("gateway: {tokenFile: /t}", "spec.gateway.url: is required"),
    ("gateway: {url: \"https://g\"}", "spec.gateway: needs a certificate and its key, or a tokenFile"),
    ("gateway: {url: \"https://g\", certificate: /c}", "spec.gateway.key: a certificate needs its key"),
    ("gateway: {url: \"https://g\", key: /k}", "spec.gateway.certificate: a key needs its certificate"),
    ("gateway: {url: \"https://g\", tokenFile: t}", "spec.gateway.tokenFile: must be an absolute path"),
    ("gateway: {url: \"https://g\", tokenFile: /sandbox/state/t}", "spec.gateway.tokenFile: is in '/sandbox/state'"),
    ("gateway: {url: \"https://g\", tokenFile: /t, wait: 0s}", "spec.gateway.wait: must be from 1s to 10m"),
    ("gateway: {url: \"https://g\", tokenFile: /t, retry: 1d}", "spec.gateway.retry: "),
    ("gateway: {url: \"https://g\", tokenFile: /t, listen: shout}", "spec.gateway.listen: must be one of poll, stream"),
    ("gateway: {url: \"https://g\", tokenFile: /t, insecure: true}", "spec.gateway.insecure: unknown field"),
    ("sockets: []", "spec.sockets: not supported by this version"),
    ("workload: {user: root}", "needs allowRoot: true"),
    ("workload: {user: \"0:0\"}", "needs allowRoot: true"),
    ("workload: {user: \"a b\"}", "is not a user or group name"),
    ("workload: {env: [{name: A=B, value: x}]}", "must not hold '='"),
    ("workload: {env: [{name: A, value: 8080}]}", "write \"8080\" in quotes"),
    ("workload: {env: [{value: x}]}", "spec.workload.env[0].name: is required"),
    ("workload: {env: [{name: A}, {name: A}]}", "spec.workload.env[1].name: is listed twice"),
    ("workload: {stopSignal: SIGFOO}", "is not a signal"),
    ("workload: {stopGracePeriod: 10}", "must be text"),
    ("workload: {stopGracePeriod: \"10\"}", "is not a duration"),
    ("workload: {oomScoreAdj: 2000}", "is 2000, the most is 1000"),
    ("workload: {limits: {nofile: 127}}", "is 127, the least is 128"),
    ("workload: {command: [\"\"]}", "must name a program"),
    ("workload: {workingdir: /}", "did you mean 'workingDir'?"),
    ("health: {liveness: {notify: {}, period: 50ms}}", "is 50ms, the least is 100ms"),
    ("health: {liveness: {notify: {}, successThreshold: 2}}", "must be 1 for liveness"),
    ("health: {liveness: {notify: {}, exec: {command: [a]}}}", "takes exactly one of"),
    ("health: {liveness: {httpGet: {port: 70000}}}", "is 70000, the most is 65535"),
    ("health: {liveness: {httpGet: {port: 0}}}", "is 0, the least is 1"),
    ("health: {liveness: {httpGet: {port: 1, path: \"/ x\"}}}", "no spaces"),
    ("health: {liveness: {tcpSocket: {port: 1, host: \"a:1\"}}}", "tcpSocket.host: must be localhost or an address"),
    ("health: {liveness: {httpGet: {port: 1, host: db.internal}}}", "5:48: spec.health.liveness.httpGet.host: must be"),
    ("health: {liveness: {httpGet: {port: 1, host: \"[10.0.0.1]\"}}}", "no name is looked up"),
    ("health: {liveness: {tcpSocket: {port: 1, host: \"[::1\"}}}", "no name is looked up"),
    (
        "health: {startupDeadline: 5s, startup: {notify: {}, timeout: 300d}}",
        "spec.health.startup.timeout: 7200h is longer than startupDeadline 5s",
    ),
    (
        "health: {startupDeadline: 700ms, readiness: {tcpSocket: {port: 1}, timeout: 1s}}",
        "spec.health.readiness.timeout: 1s is longer than startupDeadline 700ms",
    ),
    (
        "health: {monitor: 5s, liveness: {notify: {}, initialDelay: 1s}}",
        "5:21: spec.health.monitor: 5s is too short for liveness to fail in: \
         initialDelay 1s + period 2s x failureThreshold 3 = 7s",
    ),
    ("health: {startupDeadline: 5s, startup: {notify: {}, initialDelay: 5s}}", "leaves nothing"),
    ("hooks: {preStop: {exec: {command: []}}}", "must name a program"),
    ("hooks: {preStart: {exec: {command: [a]}}}", "unknown field; did you mean 'preStage'?"),
    ("update: {keep: 0}", "is 0, the least is 1"),
    ("update: {confirm: manual}", "must be one of auto, external"),
    ("update: {confirmDeadline: 5m}", "means nothing without confirm: external"),
    ("update: {reserve: 256MB}", "is not a size"),
    ("update: {autoRollback: \"no\"}", "must be true or false"),
    ("registries: {insecure: [\"http://a.b\"]}", "must be a registry host"),
    ("registries: {credentials: /sandbox/state/config.json}", "is in '/sandbox/state', which the workload sees"),
    ("api: {socket: molt.sock}", "must be an absolute path"),
    ("api: {socket: /sandbox/state/molt.sock}", "which the workload sees"),
    ("mounts: [{path: /data, carry: false, readOnly: true}]", "means nothing with carry: false"),
    ("mounts: [{path: /sandbox/state}]", "is a state path"),
    ("mounts: [{carry: false}]", "spec.mounts[0].path: is required"),
];

#[test]
fn bad_documents_are_refused_with_the_place_and_the_reason() {
    for (section, expected) in BAD {
        let text = with(section);
        let faults = parse(&text).expect_err(section).to_string();
        assert!(faults.contains(expected), "{section}\n  gives   {faults}\n  and not {expected}");
        assert!(faults.starts_with(|first: char| first.is_ascii_digit()), "no place: {faults}");
    }
}

#[test]
fn a_short_monitor_goes_with_a_readiness_that_is_notified() {
    assert!(parse(&with("health: {monitor: 1s, readiness: {notify: {}}}")).is_ok());
    assert!(parse(&with("health: {monitor: 1s, readiness: {tcpSocket: {port: 1}}}")).is_err());
}

#[test]
fn probes_and_gateways_are_found_by_address() {
    for host in ["localhost", "127.0.0.1", "::1", "[::1]", "fe80::1"] {
        assert!(parse(&with(&format!("health: {{startup: {{tcpSocket: {{port: 1, host: \"{host}\"}}}}}}"))).is_ok());
    }
    for url in ["https://g", "https://g:1/", "https://[::1]", "https://[::1]:65535/fleet", "https://10.0.0.1:8443"] {
        let gateway = format!("gateway: {{url: \"{url}\", tokenFile: /t}}");
        assert_eq!(parse(&with(&gateway)).err(), None, "{url}");
    }
}

#[test]
fn a_timeout_that_nobody_wrote_is_no_fault() {
    assert!(parse(&with("health: {startupDeadline: 1s, readiness: {tcpSocket: {port: 1}}}")).is_ok());
    assert!(parse(&with("health: {startupDeadline: 5s, readiness: {tcpSocket: {port: 1}, timeout: 5s}}")).is_ok());
    // Nothing of it is within the start.
    assert!(parse(&with("health: {startupDeadline: 5s, liveness: {tcpSocket: {port: 1}, timeout: 9s}}")).is_ok());
}

#[test]
fn a_name_for_a_gateway_fits_into_a_certificate() {
    let gateway = "{url: \"https://g\", tokenFile: /t}";
    let named = |name: &str, gateway: &str| {
        let spec = Spec { name: name.to_owned(), ..parse(&with(&format!("gateway: {gateway}"))).unwrap() };
        spec.check().err().map(|faults| faults.to_string()).unwrap_or_default()
    };
    let (label, long) = ("a".repeat(63), "a".repeat(64));
    let whole = format!("{label}.{label}.{label}");
    for good in ["a", "whatsapp-daemon", "0.b-c", &whole, &format!("{whole}.aaaaaaaa")] {
        assert_eq!(named(good, gateway), "", "{good}");
    }
    for bad in [long.as_str(), &format!("b.{long}"), &format!("{whole}.aaaaaaaaa")] {
        let faults = named(bad, gateway);
        assert!(faults.starts_with("metadata.name: must have at most 200 characters, and 63"), "{bad}: {faults}");
        assert_eq!(named(bad, "null"), "", "{bad} is nobody else's business");
    }
    assert_eq!(named("a-.b", gateway).lines().count(), 1);
}

#[test]
fn a_fault_of_form_hides_no_fault_of_a_field_with_a_shorter_name() {
    let faults = parse(&with("workload: {user: root, userr: x}")).unwrap_err().to_string();
    let lines: Vec<&str> = faults.lines().collect();
    assert_eq!(
        lines,
        [
            "5:20: spec.workload.user: is root: that needs allowRoot: true",
            "5:26: spec.workload.userr: unknown field; did you mean 'user'?",
        ]
    );
    // What is missed for the form of a part of it is still said once.
    assert_eq!(parse(&with("gateway: {url: \"https://g\", tokenFile: 5}")).unwrap_err().0.len(), 1);
}

#[test]
fn what_others_judge_is_said_with_the_rest_and_where_it_stands() {
    let text = with(
        "imgae: x\npolicy:\n  version: 1\norders: {keys: [5, {id: \"\"}, {id: a, algorithm: EdDSA, key: k,\
                     operations: [update]}]}",
    );
    let policy = |node: &Node| {
        let at = node.get("version").and_then(|version| version.place);
        let found = |path: &str, place: Option<document::Place>| Violation {
            path: path.to_owned(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            message: "is judged".to_owned(),
        };
        Violations(vec![found("version", at), found("", None)])
    };
    let more = |spec: &Spec, places: &Places| {
        assert_eq!((spec.name.as_str(), spec.orders.keys.len()), ("wa", 1));
        Violations(vec![places.violation("spec.orders.keys[0].key", "is judged")])
    };
    let faults = parse_with(&text, policy, more).unwrap_err().to_string();
    for line in [
        "5:3: spec.imgae: unknown field; did you mean 'image'?",
        "7:5: spec.policy: is judged",
        "7:14: spec.policy.version: is judged",
        "8:63: spec.orders.keys[2].key: is judged",
    ] {
        assert!(faults.lines().any(|found| found == line), "{line} is not in\n{faults}");
    }
    let none = |text: &str| parse_with(&with(text), |_| panic!("asked about {text}"), |_, _| Violations::default());
    assert!(none("policy: unconfined").is_ok() && none("policy: ~").is_ok() && none("policy: confined").is_err());
}

#[test]
fn an_audience_is_shared_by_those_without_a_name() {
    let orders = "orders: {keys: [{id: a, algorithm: EdDSA, key: k, operations: [update]}]}";
    let note = |spec: &Spec| spec.orders.shared_audience(&spec.name);
    let named = parse(&with(orders)).unwrap();
    assert_eq!(note(&named), None);
    let nameless = Spec { name: DEFAULT_NAME.to_owned(), ..named };
    assert!(note(&nameless).unwrap().contains("'molt:sandbox'"));
    let audience = Spec { orders: Orders { audience: Some("molt:sandbox".into()), ..nameless.orders }, ..nameless };
    assert_eq!(note(&audience), None, "somebody chose it");
    assert_eq!(note(&Spec::default()), None, "there is no key");
}

#[test]
fn documents_of_another_kind_are_refused() {
    for (text, expected) in [
        ("", "must be a mapping"),
        ("{}", "apiVersion: is required"),
        ("[]", "must be a mapping"),
        ("apiVersion: v1\nkind: Pod\n", "1:13: apiVersion: must be 'molt.dev/v1alpha1'\n2:7: kind: must be 'Sandbox'"),
        ("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: A_b}", "metadata.name: must be lower-case"),
        ("apiVersion: molt.dev/v1alpha1\nkind: Sandbox\n---\nkind: Sandbox", "only one is taken"),
        ("a: [", "1:4: unclosed bracket"),
        ("a: .nan", "1:4: non-finite float `.nan` is not taken"),
        ("a: !!foo b", "unsupported tag"),
        ("a: *x", "unknown anchor"),
        ("a: \u{0}", "1:4: unexpected character"),
    ] {
        let faults = parse(text).expect_err(text).to_string();
        assert!(faults.contains(expected), "{text:?} gives {faults}");
    }
}

#[test]
fn huge_and_deep_documents_are_refused_without_being_read() {
    let long = format!("#{}\n", "x".repeat(MAX_BYTES));
    assert!(parse(&long).unwrap_err().to_string().contains("at most 1024 KiB"));
    let deep = with(&format!("policy: {{a: {}{}}}", "[".repeat(500), "]".repeat(500)));
    assert!(parse(&deep).unwrap_err().to_string().contains("nested too deep"));
    let bombs = (0..20).fold("policy:\n  a0: &a0 [x, x]\n".to_owned(), |text, n| {
        text + &format!("  a{}: &a{} [*a{n}, *a{n}, *a{n}, *a{n}, *a{n}]\n", n + 1, n + 1)
    });
    assert!(parse(&with(&bombs)).unwrap_err().to_string().contains("too many nodes"));
}

#[test]
fn the_schema_has_the_fields_and_their_words() {
    let schema = schema();
    let text = schema.to_string();
    for word in ["apiVersion", "stopGracePeriod", "startupDeadline", "molt.dev/v1alpha1", "policyFile", "httpGet"] {
        assert!(text.contains(word), "{word}");
    }
    assert!(!text.contains("\"name\":{\"description\":\"`metadata.name`"));
    assert_eq!(schema.pointer("/$defs/Spec/additionalProperties"), Some(&serde_json::Value::Bool(false)));
}

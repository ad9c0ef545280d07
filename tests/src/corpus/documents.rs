//! Manifests, indexes and configs that lie, say two things, or are too much.

use serde_json::{Value, json};

use super::{Hostile, Update, Verdict, case, document, harmless, then};
use crate::harness::image::{Built, Document, Format, ImageBuilder, Layer, Packed, Packing, architecture, digest};
use crate::harness::tar::Tar;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(super) fn cases() -> Vec<Hostile> {
    [manifests(), indexes(), digests(), configs(), layers()].into_iter().flatten().collect()
}

fn one() -> Packed {
    Layer::new().file("srv-file", 0o644, b"1").pack(Packing::Gzip)
}

/// One that no other case has brought into the store before.
fn fresh(text: &str) -> Packed {
    Layer::new().file("fresh", 0o644, text.as_bytes()).pack(Packing::Gzip)
}

const ONE: &str = "f 644 0:0 srv-file 1 @1700000000";

/// A manifest bent as JSON.
fn bent(name: &'static str, row: super::Row, verdict: Verdict, bend: fn(&mut Value)) -> Hostile {
    case(name, &[row], verdict, move |base| base.layer(one()).build_bent(bend))
}

/// A manifest bent as text.
fn text(name: &'static str, row: super::Row, verdict: Verdict, bend: fn(&str) -> String) -> Hostile {
    case(name, &[row], verdict, move |base| {
        let mut built = base.layer(one()).build();
        built.document.bytes = bend(std::str::from_utf8(&built.document.bytes).expect("JSON is text")).into_bytes();
        built
    })
}

/// A config bent as JSON.
fn config(name: &'static str, row: super::Row, verdict: Verdict, bend: fn(&mut Value)) -> Hostile {
    case(name, &[row], verdict, move |base| base.layer(one()).bend_config(bend).build())
}

fn manifests() -> Vec<Hostile> {
    let mixed = || document("mixes the parts");
    vec![
        bent("a manifest that is an index as well", "R8", mixed(), |it| it["manifests"] = json!([])),
        bent("a manifest without layers", "R8", mixed(), |it| drop(it.as_object_mut().map(|it| it.remove("layers")))),
        bent("a manifest without a config", "R8", mixed(), |it| drop(it.as_object_mut().map(|it| it.remove("config")))),
        bent("a manifest that calls itself an index", "R8", document("calls itself"), |it| {
            it["mediaType"] = json!(INDEX);
        }),
        bent("schema version 1", "R8", document("schema version 1"), |it| it["schemaVersion"] = json!(1)),
        bent("a layer list that is an object", "R8", document("not a manifest"), |it| it["layers"] = json!({"0": 1})),
        bent("a config of another kind", "R8", document("an artifact"), |it| {
            it["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        }),
        bent("a config of nine MiB", "R14", document("a config of 9437184 bytes"), |it| {
            it["config"]["size"] = json!(9 << 20);
        }),
        bent("a config that is larger than it says", "R11", document("larger than"), |it| {
            it["config"]["size"] = json!(7);
        }),
        bent("a negative size", "R11", document("not a manifest"), |it| it["layers"][0]["size"] = json!(-1)),
        bent("a size of 2^64", "R11", document("not a manifest"), |it| it["layers"][0]["size"] = json!(1.8e19)),
        bent("a layer of 17 GiB", "R11", document("more than"), |it| it["layers"][0]["size"] = json!(17_u64 << 30)),
        bent("a layer that may not be distributed", "R4", document("may not be distributed"), |it| {
            it["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        }),
        bent("a foreign layer", "R4", document("may not be distributed"), |it| {
            it["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        }),
        bent("a layer of no kind", "R8", document("not taken"), |it| it["layers"][0]["mediaType"] = json!("text/html")),
        bent("an encrypted layer", "R8", document("not taken"), |it| {
            it["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        }),
        bent("a layer that names other places to get it", "R4", harmless(&[ONE]), |it| {
            let last = it["layers"].as_array().map_or(0, |all| all.len() - 1);
            it["layers"][last]["urls"] = json!(["http://169.254.169.254/latest", "http://127.0.0.1:1/layer"]);
        }),
        bent("a subject and annotations of one MiB", "R14", harmless(&[ONE]), |it| {
            it["subject"] = json!({"mediaType": MANIFEST, "digest": "sha256:../x", "size": -1});
            it["annotations"] = json!({"long": "x".repeat(1 << 20), "\u{1b}[31m": "\n"});
        }),
        text("layers named twice", "R8", document("duplicate field"), |text| {
            text.replacen("\"schemaVersion\"", "\"layers\":[],\"schemaVersion\"", 1)
        }),
        text("a config named twice", "R8", document("duplicate field"), |text| {
            let config = text
                .find("\"config\":")
                .map_or("", |at| &text[at..text[at..].find('}').map_or(at, |end| at + end + 1)]);
            text.replacen('{', &format!("{{{config},"), 1)
        }),
        text("text behind the manifest", "R8", document("not a manifest"), |text| format!("{text}{{}}")),
        text("a manifest in UTF-16", "R8", document("not a manifest"), |text| {
            text.chars().flat_map(|c| ['\0', c]).collect()
        }),
        text("100 000 brackets", "R14", document("not a manifest"), |_| "[".repeat(100_000)),
        text("an unknown field 100 000 deep", "R14", harmless(&[ONE]), |text| {
            text.replacen('{', &format!("{{\"deep\":{}{},", "[".repeat(100_000), "]".repeat(100_000)), 1)
        }),
        text("no manifest at all", "R8", document("not a manifest"), |_| String::new()),
        text("a page", "R8", document("not a manifest"), |_| "<html>log in</html>".to_owned()),
        text("five MiB of blanks", "R14", document("larger than"), |text| text.to_owned() + &" ".repeat(5 << 20)),
    ]
}

fn indexes() -> Vec<Hostile> {
    let platform = |says| Verdict::Refused("wrong-platform", says);
    let of = |base: &ImageBuilder| base.clone().layer(one()).build();
    let entry = |built: &Built, platform: Value| json!({"mediaType": MANIFEST, "digest": built.digest(), "size": built.document.bytes.len(), "platform": platform});
    let own = || json!({"os": "linux", "architecture": architecture()});
    let index = |built: Built, entries: Vec<Value>| {
        let bytes = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes();
        let mut whole = Built::index(Format::Oci, vec![built]);
        whole.document = Document { media_type: INDEX, bytes };
        whole
    };
    vec![
        case("an index in an index", &["R9"], platform("no platform"), move |base| {
            Built::index(Format::Oci, vec![Built::index(Format::Oci, vec![of(&base)])])
        }),
        case("an index whose entry is an index", &["R9"], document(""), move |base| {
            let inner = Built::index(Format::Oci, vec![of(&base)]);
            let lie = entry(&inner, own());
            index(inner, vec![lie])
        }),
        case("65 platforms", &["R9"], document("65 entries"), move |base| {
            let built = of(&base);
            let one = entry(&built, own());
            index(built, vec![one; 65])
        }),
        case("an index without an image", &["R9"], platform("no platform"), move |base| index(of(&base), Vec::new())),
        case("another machine only", &["R9"], platform("only linux/s390x"), move |base| {
            let built = of(&base);
            let one = entry(&built, json!({"os": "linux", "architecture": "s390x"}));
            index(built, vec![one])
        }),
        case("a platform with control characters", &["R9", "U36"], platform("only li"), move |base| {
            let built = of(&base);
            let one = entry(&built, json!({"os": "li\u{1b}[2Jnux", "architecture": "a\nb"}));
            index(built, vec![one])
        }),
        case("a better variant only", &["R9"], platform("/v9"), move |base| {
            let built = of(&base);
            let one = entry(&built, json!({"os": "linux", "architecture": architecture(), "variant": "v9"}));
            index(built, vec![one])
        }),
        case("an index that is right and a config that is not", &["R9"], platform("only linux/s390x"), move |base| {
            let built = base.clone().layer(one()).bend_config(|it| it["architecture"] = json!("s390x")).build();
            let one = entry(&built, own());
            index(built, vec![one])
        }),
        case("an entry of another size", &["R9", "R11"], document("larger than"), move |base| {
            let built = of(&base);
            let mut one = entry(&built, own());
            one["size"] = json!(10);
            index(built, vec![one])
        }),
        case("a manifest that is elsewhere", &["R9"], Verdict::Refused("not-found", ""), move |base| {
            let built = of(&base);
            let mut one = entry(&built, own());
            one["digest"] = json!(digest(b"elsewhere"));
            index(built, vec![one])
        }),
        case("an index with layers", &["R8"], document("mixes the parts"), move |base| {
            let built = of(&base);
            let mut whole = index(built.clone(), vec![entry(&built, own())]);
            let text = String::from_utf8(whole.document.bytes).expect("JSON is text");
            whole.document.bytes = text.replacen('{', "{\"layers\":[],", 1).into_bytes();
            whole
        }),
        case("the same platform twice", &["R9"], harmless(&[ONE]), move |base| {
            let built = of(&base);
            let mut second = entry(&built, own());
            second["digest"] = json!(digest(b"elsewhere"));
            index(built.clone(), vec![entry(&built, own()), second])
        }),
    ]
}

fn digests() -> Vec<Hostile> {
    fn named(name: &'static str, change: fn(&str) -> String) -> Hostile {
        case(name, &["R10"], document("not a manifest"), move |base| {
            base.layer(one()).build_bent(|it| {
                let good = it["layers"][0]["digest"].as_str().unwrap_or_default().to_owned();
                it["layers"][0]["digest"] = json!(change(&good));
            })
        })
    }
    vec![
        named("a digest that climbs", |_| "sha256:../../../../etc/passwd".to_owned()),
        named("a digest that climbs, of the right length", |_| format!("sha256:{}", "../".repeat(21) + "x")),
        named("a digest in capitals", |good| good.to_uppercase().replace("SHA256", "sha256")),
        named("a short digest", |good| good[..40].to_owned()),
        named("a long digest", |good| format!("{good}00")),
        named("md5", |_| format!("md5:{}", "0".repeat(32))),
        named("sha512", |_| format!("sha512:{}", "0".repeat(128))),
        named("no digest", |_| String::new()),
        named("a digest with a NUL", |good| good[..70].to_owned() + "\0"),
    ]
}

fn configs() -> Vec<Hostile> {
    vec![
        config("a diff id of something else", "R13", Verdict::Refused("content-mismatch", "diff_id"), |it| {
            let last = it["rootfs"]["diff_ids"].as_array().map_or(0, |all| all.len() - 1);
            it["rootfs"]["diff_ids"][last] = json!(digest(b"something else"));
        }),
        config("a diff id too few", "R13", document("diff ids"), |it| {
            drop(it["rootfs"]["diff_ids"].as_array_mut().and_then(Vec::pop));
        }),
        config("a diff id too many", "R13", document("diff ids"), |it| {
            it["rootfs"]["diff_ids"].as_array_mut().into_iter().for_each(|all| all.push(json!(digest(b"more"))));
        }),
        config("a diff id that climbs", "R10", document("not an image config"), |it| {
            it["rootfs"]["diff_ids"][0] = json!("sha256:../../etc");
        }),
        config("a root that is not made of layers", "R13", document("not made of layers"), |it| {
            it["rootfs"]["type"] = json!("snapshot");
        }),
        config("no root", "R13", document("not an image config"), |it| it["rootfs"] = Value::Null),
        config("another system", "R9", Verdict::Refused("wrong-platform", "only windows"), |it| {
            it["os"] = json!("windows");
        }),
        config("no architecture", "R9", document("for which os"), |it| {
            drop(it.as_object_mut().map(|it| it.remove("architecture")));
        }),
        config("a command that is a text", "R13", document("not an image config"), |it| {
            it["config"]["Entrypoint"] = json!("/bin/sh -c true");
        }),
        config("a NUL in the command", "U26", document("a NUL byte"), |it| it["config"]["Cmd"] = json!(["a\0b"])),
        config("a NUL in the environment", "U26", document("a NUL byte"), |it| it["config"]["Env"] = json!(["A=\0"])),
        config("a history without end", "R14", harmless(&[ONE]), |it| {
            it["history"] = json!(vec![json!({"created_by": "\u{1b}[31m", "empty_layer": true}); 20_000]);
        }),
        config("labels without end", "R14", harmless(&[ONE]), |it| {
            let labels = (0..20_000).map(|n| (format!("\u{1b}]0;{n}\u{7}"), json!("x\ny")));
            it["config"]["Labels"] = Value::Object(labels.collect());
        }),
        config("a volume 240 deep", "R14", document("recursion limit"), |it| {
            it["config"]["Volumes"]["/deep"] = (0..120).fold(json!(1), |inner, _| json!([[inner]]));
        }),
        config("a health check, a shell and build steps", "S50", harmless(&[ONE]), |it| {
            it["config"]["Healthcheck"] = json!({"Test": ["CMD-SHELL", "touch /sandbox/state/.healthcheck"]});
            it["config"]["OnBuild"] = json!(["RUN touch /sandbox/state/.onbuild"]);
            it["config"]["Shell"] = json!(["/bin/evil"]);
            it["config"]["StopSignal"] = json!("SIGNONSENSE");
        }),
    ]
}

fn layers() -> Vec<Hostile> {
    let many = |base: ImageBuilder, count: usize| {
        let missing = count - base.layers.len();
        (0..missing).fold(base, |base, n| {
            let layer = Layer::new().file(&format!("layer-{:03}", missing - n), 0o644, b"").pack(Packing::Gzip);
            base.layer(layer)
        })
    };
    vec![
        case("128 layers", &["U38"], harmless(&["f 644 0:0 layer-001 @1700000000"]), move |base| {
            many(base, 128).build()
        }),
        case("129 layers", &["U38"], document("129 layers, more than 128"), move |base| many(base, 129).build()),
        case("501 layers", &["U38"], document("501 layers, more than 128"), move |base| many(base, 501).build()),
        case("one layer ten times", &["U38", "R17"], harmless(&[ONE]), |base| {
            (0..10).fold(base, |base, _| base.layer(one())).build()
        }),
        case("no layer of its own", &["U38"], then(&["f 644 0:0 x 1"], Update::Serves), |base| {
            base.layer(Packed::new(&Tar::new().file("x", "1").end(), Packing::Plain)).build()
        }),
        case("a blob that is another", &["R11", "R17"], Verdict::Refused("content-mismatch", ""), |base| {
            let good = fresh("another").bytes;
            let mut packed = fresh("another");
            packed.digest = digest(b"promised");
            // Put where the promised one would be: the layout names it so.
            let mut built = base.layer(packed).build();
            built.misnamed.push((digest(b"promised"), good));
            built
        }),
        case("a blob that is longer than it says", &["R11"], Verdict::Refused("content-mismatch", "size"), |base| {
            base.layer(fresh("longer")).build_bent(|it| {
                let last = it["layers"].as_array().map_or(0, |all| all.len() - 1);
                let size = it["layers"][last]["size"].as_u64().unwrap_or_default();
                it["layers"][last]["size"] = json!(size - 1);
            })
        }),
        case("a blob that is shorter than it says", &["R11"], Verdict::Refused("content-mismatch", "size"), |base| {
            base.layer(fresh("shorter")).build_bent(|it| {
                let last = it["layers"].as_array().map_or(0, |all| all.len() - 1);
                let size = it["layers"][last]["size"].as_u64().unwrap_or_default();
                it["layers"][last]["size"] = json!(size + 1);
            })
        }),
        case("a layer that is not there", &["R11"], Verdict::Refused("not-found", ""), |base| {
            base.layer(fresh("not there")).build_bent(|it| {
                let last = it["layers"].as_array().map_or(0, |all| all.len() - 1);
                it["layers"][last] = json!({"mediaType": GZIP, "digest": digest(b"nowhere"), "size": 100});
            })
        }),
    ]
}

//! Commands that change something: the request, the wait for its end, and what is said about it.
//!
//! In: arguments. Out: the record of the update on standard output, an exit status. Must not: judge an image reference or
//! a policy; the supervisor does, in its own words.

use std::path::Path;

use hyper::Method;
use molt_core::{
    code::Code,
    ids::{Digest, UpdateId},
    order::Operation,
    spec::Span,
    wire::{
        Accepted, BadView, Collected, Document, HoldView, OrderRequest, Ordered, Outcome, PlanView, RollbackRequest,
        UpdateView, exit_status,
    },
};

use super::{
    args::{RollbackArgs, UpdateArgs, Wait},
    client::Client,
    fault::{Fault, REFUSED},
    follow::{self, Until},
    print::{Printer, Tone, say},
    show, text,
};
use crate::api::HoldRequest;

const NO_BODY: Option<&()> = None;

/// `molt update`.
pub(crate) async fn update(printer: Printer, client: &Client, args: UpdateArgs) -> Result<u8, Fault> {
    let (None, image) = args.target()? else {
        return Err(Fault::Usage("sandboxes have names with a gateway: --gateway URL".to_owned()));
    };
    let policy = args.policy.as_deref().map(read).transpose()?;
    // Not `UpdateRequest`: the reference goes as it was typed, for the supervisor to read.
    let mut request = serde_json::json!({
        "image": image,
        "stageOnly": args.stage_only,
        "force": args.force,
        "allowWider": args.allow_wider,
    });
    if let Some(fields) = request.as_object_mut() {
        fields.extend(policy.clone().map(|policy| ("policy".to_owned(), policy.into())));
        fields.extend(args.reason.map(|reason| ("reason".to_owned(), reason.into())));
    }
    let path = if args.dry_run { "/v1/updates?dryRun=All" } else { "/v1/updates" };
    let answer = client.done(Method::POST, path, Some(&request)).await;
    let bytes = match answer {
        // The request was fine, what it carries is not: that is a refusal, not a matter of usage.
        Err(Fault::Problem(problem)) if policy.is_some() && problem.code == Code::Invalid => {
            printer.fault(&Fault::Problem(problem));
            return Ok(REFUSED);
        }
        answer => answer?,
    };
    let broken = |error: serde_json::Error| Fault::Broken(error.to_string());
    if args.dry_run {
        let plan: PlanView = serde_json::from_slice(&bytes).map_err(broken)?;
        printer.document(&plan, show::plan)?;
        return Ok(0);
    }
    let until = if args.stage_only { Until::Staged } else { Until::Decision };
    end(printer, client, serde_json::from_slice(&bytes).map_err(broken)?, args.wait, until, exit_status).await
}

/// `molt policy diff`: what an update with this policy would be refused for; 6 where there is anything.
pub(crate) async fn policy_diff(
    printer: Printer,
    client: &Client,
    file: &Path,
    image: Option<String>,
) -> Result<u8, Fault> {
    let policy = read(file)?;
    let image = if let Some(image) = image {
        image
    } else {
        let document: Document = client.get("/v1/status").await?;
        let status = document.status;
        let running = status.confirmed.and_then(|view| view.image).map(|image| image.to_string());
        running
            .ok_or_else(|| Fault::Usage("no image runs: name one, or compare two files with --against".to_owned()))?
    };
    let request = serde_json::json!({"image": image, "policy": policy, "force": true});
    let bytes = match client.done(Method::POST, "/v1/updates?dryRun=All", Some(&request)).await {
        Err(Fault::Problem(problem)) if problem.code == Code::Invalid => {
            printer.fault(&Fault::Problem(problem));
            return Ok(REFUSED);
        }
        answer => answer?,
    };
    let plan: PlanView = serde_json::from_slice(&bytes).map_err(|error| Fault::Broken(error.to_string()))?;
    printer
        .document(&plan.wider, |wider| wider.iter().fold(String::new(), |text, one| text + &text::clean(one) + "\n"))?;
    if plan.wider.is_empty() {
        say(&printer.paint(Tone::Good, "not wider than what is in force"));
        return Ok(0);
    }
    Ok(REFUSED)
}

/// `molt rollback`.
pub(crate) async fn rollback(printer: Printer, client: &Client, args: RollbackArgs) -> Result<u8, Fault> {
    if args.name.is_some() {
        return Err(Fault::Usage(
            "sandboxes have names with a gateway: --gateway URL; a generation is --to N".to_owned(),
        ));
    }
    let request = RollbackRequest { to: args.to, reason: args.reason };
    let accepted = client.call(Method::POST, "/v1/rollback", Some(&request)).await?;
    end(printer, client, accepted, args.wait, Until::Decision, exit_status).await
}

/// `molt apply`.
pub(crate) async fn apply(printer: Printer, client: &Client, wait: Wait) -> Result<u8, Fault> {
    let accepted = client.call(Method::POST, "/v1/apply", NO_BODY).await?;
    end(printer, client, accepted, wait, Until::Decision, exit_status).await
}

/// `molt confirm`.
pub(crate) async fn confirm(printer: Printer, client: &Client, wait: Wait) -> Result<u8, Fault> {
    let accepted = client.call(Method::POST, "/v1/confirm", NO_BODY).await?;
    end(printer, client, accepted, wait, Until::Ended, exit_status).await
}

/// `molt reject`: the rollback is what was asked for.
pub(crate) async fn reject(printer: Printer, client: &Client, wait: Wait) -> Result<u8, Fault> {
    let accepted = client.call(Method::POST, "/v1/reject", NO_BODY).await?;
    end(printer, client, accepted, wait, Until::Ended, |view| match view.outcome {
        Some(Outcome::RolledBack) => 0,
        _ => exit_status(view),
    })
    .await
}

/// An order that was taken, in short.
pub(crate) fn ordered(ordered: &Ordered) -> String {
    text::clean(&format!("order {} {} ({}): {}", ordered.key, ordered.seq, ordered.jti, ordered.op.as_str()))
}

/// `molt apply-order`: what becomes of the order is what becomes of what it asks for.
pub(crate) async fn order(
    printer: Printer,
    client: &Client,
    file: &Path,
    policy: Option<&Path>,
    wait: Wait,
) -> Result<u8, Fault> {
    let jws = read(file)?.trim().to_owned();
    let request = OrderRequest { jws, policy: policy.map(read).transpose()? };
    let ordered: Ordered = client.call(Method::POST, "/v1/orders", Some(&request)).await?;
    say(&printer.paint(Tone::Good, &format!("{} is taken", self::ordered(&ordered))));
    let Some(id) = ordered.id else {
        printer.document(&ordered, |_| String::new())?;
        return Ok(0);
    };
    let accepted = Accepted { id, after_seq: ordered.after_seq };
    let (until, wanted) = match ordered.op {
        Operation::Reject => (Until::Ended, Some(Outcome::RolledBack)),
        Operation::Cancel => (Until::Ended, Some(Outcome::Aborted)),
        Operation::Confirm => (Until::Ended, None),
        _ => (Until::Decision, None),
    };
    end(printer, client, accepted, wait, until, |view| match view.outcome {
        outcome if wanted.is_some() && outcome == wanted => 0,
        _ => exit_status(view),
    })
    .await
}

/// `molt cancel`: the end of the update is what was asked for.
pub(crate) async fn cancel(printer: Printer, client: &Client, id: Option<UpdateId>, wait: Wait) -> Result<u8, Fault> {
    let id = id.map_or_else(|| "current".to_owned(), |id| id.to_string());
    let accepted = client.call(Method::POST, &format!("/v1/updates/{id}/cancel"), NO_BODY).await?;
    end(printer, client, accepted, wait, Until::Ended, |view| match view.outcome {
        Some(Outcome::Aborted) => 0,
        _ => exit_status(view),
    })
    .await
}

/// Waits, where that is wanted, and tells how it ended.
async fn end(
    printer: Printer,
    client: &Client,
    accepted: Accepted,
    wait: Wait,
    until: Until,
    status: impl FnOnce(&UpdateView) -> u8,
) -> Result<u8, Fault> {
    if wait.no_wait {
        printer.document(&accepted, |accepted| format!("{}\n", accepted.id))?;
        printer.hint(&format!("its end: molt show {}", accepted.id));
        return Ok(0);
    }
    let view = follow::to_the_end(printer, client, &accepted, wait.limit(), until).await?;
    let status = status(&view);
    let tone = if status == 0 { Tone::Good } else { Tone::Bad };
    if printer.is_data() {
        say(&printer.paint(tone, &show::ending(&view)));
    }
    printer.document(&view, |view| show::ending(view) + "\n")?;
    // What is lost is said with the result, not only where one has to look for it.
    if matches!(view.outcome, Some(Outcome::Confirmed | Outcome::RolledBack))
        && let Ok(document) = client.get::<Document>("/v1/status").await
    {
        for line in &document.status.degraded {
            say(&printer.paint(Tone::Bad, &format!("degraded: {}", text::line(line, 300))));
        }
    }
    if status != 0 {
        if !view.message.is_empty() {
            say(&text::block(&view.message));
        }
        let bad = client.get::<Vec<BadView>>("/v1/bad").await.unwrap_or_default();
        let digest = bad.iter().find(|bad| bad.update == view.id).map(|bad| bad.digest);
        for hint in show::next(&view, digest) {
            printer.hint(&hint);
        }
    }
    Ok(status)
}

/// `molt hold`.
pub(crate) async fn hold(
    printer: Printer,
    client: &Client,
    ttl: Option<Span>,
    reason: Option<String>,
    owner: Option<String>,
) -> Result<u8, Fault> {
    let request = HoldRequest { ttl_ms: ttl.map(Span::as_millis), reason, owner };
    let hold: HoldView = client.call(Method::PUT, "/v1/hold", Some(&request)).await?;
    if printer.is_data() {
        printer.document(&hold, |_| String::new())?;
    }
    say(&format!("updates are held until {}; molt release ends it", text::time(&hold.until)));
    Ok(0)
}

/// `molt release`.
pub(crate) async fn release(client: &Client, owner: Option<String>) -> Result<u8, Fault> {
    let mut path = "/v1/hold".to_owned();
    if let Some(owner) = owner {
        // The name goes into a line of HTTP: what could end it goes as a number.
        let safe = |byte: u8| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        };
        path = format!("{path}?owner={}", owner.bytes().map(safe).collect::<String>());
    }
    client.done(Method::DELETE, &path, NO_BODY).await?;
    say("updates are not held any more");
    Ok(0)
}

/// `molt gc`.
pub(crate) async fn collect(printer: Printer, client: &Client) -> Result<u8, Fault> {
    let collected: Collected = client.call(Method::POST, "/v1/gc", NO_BODY).await?;
    printer.document(&collected, show::collected)?;
    Ok(0)
}

/// `molt bad remove`.
pub(crate) async fn forget(client: &Client, digest: Digest) -> Result<u8, Fault> {
    client.done(Method::DELETE, &format!("/v1/bad/{digest}"), NO_BODY).await?;
    say(&format!("{digest} may be tried again"));
    Ok(0)
}

/// Text of a file, `-` for standard input; at most what the API takes.
pub(crate) fn read(path: &Path) -> Result<String, Fault> {
    use std::io::Read as _;
    const MOST: u64 = 1 << 20;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MOST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST + 1).read_to_string(&mut text))
    };
    match read {
        Ok(_) if text.len() as u64 > MOST => Err(Fault::Usage(format!("{}: longer than 1 MiB", path.display()))),
        Ok(_) => Ok(text),
        Err(error) => Err(Fault::Usage(format!("failed to read {}: {error}", path.display()))),
    }
}

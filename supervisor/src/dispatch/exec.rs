//! `molt exec`: in the workload's confinement, or without it.
//!
//! In: a command of the operator. Out: a session. Must not: run anything where no workload runs, or unconfined where one is
//! on its way out.

use std::{collections::BTreeMap, sync::Arc};

use molt_core::{
    code::Code,
    wire::{ExecOptions, Problem},
};
use tokio::sync::mpsc;

use super::Dispatcher;
use crate::{
    command::Reply,
    workload::{
        exec::{ExecSession, Streams},
        run::{Live, NotSent},
        unconfined::{self, Request},
    },
};

impl Dispatcher {
    pub(super) fn exec(&self, options: ExecOptions, by: String, reply: Reply<ExecSession>) {
        let result = if options.unconfined {
            match self.unconfined(options, by) {
                Ok(request) => return self.run_unconfined(request, reply),
                Err(problem) => Err(problem),
            }
        } else {
            self.confined(options, &by)
        };
        // A reply nobody waits for any more is not an error.
        drop(reply.send(result));
    }

    fn running(&self) -> Result<&Live, Problem> {
        let live = self.state.serving.and_then(|run| self.live.get(&run.instance));
        live.ok_or_else(|| Problem::new(Code::Busy, "nothing runs at the moment"))
    }

    fn confined(&self, options: ExecOptions, by: &str) -> Result<ExecSession, Problem> {
        let live = self.running()?;
        let env = environment(&options)?;
        tracing::info!(by, argv = ?options.argv, "exec");
        let streams = Streams::new(&options)
            .map_err(|errno| Problem::new(Code::Internal, format!("failed to make streams: {errno}")))?;
        let init = Arc::clone(&live.init);
        let (signals, mut asked) = mpsc::channel::<i32>(8);
        let (id, exited) = init.exec(options.argv, env, options.tty, streams.lent()).map_err(not_started)?;
        drop(tokio::spawn(async move {
            while let Some(signal) = asked.recv().await {
                init.signal_exec(id, signal);
            }
            // The session was dropped: as when a terminal is closed.
            init.signal_exec(id, 1);
        }));
        Ok(streams.session(exited, signals))
    }

    fn unconfined(&self, options: ExecOptions, by: String) -> Result<Request, Problem> {
        let live = self.running()?;
        if self.in_gap() {
            let message = "the workload is being changed right now; try again when another one runs";
            return Err(Problem::new(Code::Busy, message));
        }
        let env = environment(&options)?;
        let place = live
            .place
            .again()
            .map_err(|error| Problem::new(Code::Internal, format!("failed to hold the namespaces: {error}")))?;
        Ok(Request { options, env, by, generation: live.run.generation, init: Arc::clone(&live.init), place })
    }

    fn run_unconfined(&self, request: Request, reply: Reply<ExecSession>) {
        if self.context.store.is_none() {
            let message = "there is no usable store, and so no history to write it to; nothing was run";
            return drop(reply.send(Err(Problem::new(Code::StoreUnusable, message))));
        }
        let context = Arc::clone(&self.context);
        drop(tokio::spawn(async move {
            let session = unconfined::start(&context, request, || !reply.is_closed()).await;
            drop(reply.send(session));
        }));
    }
}

/// Nothing was run, and nobody is to take that for a program that was killed.
fn not_started(why: NotSent) -> Problem {
    match why {
        NotSent::TooLong => {
            let mend = "nothing was run: give it what is long by standard input or in a file";
            Problem::new(Code::Invalid, format!("{why}; {mend}"))
        }
        NotSent::Busy => Problem::new(Code::Busy, format!("{why}; nothing was run: try again in a moment")),
        NotSent::Gone => Problem::new(Code::Busy, format!("{why}; nothing was run: try again when another one runs")),
    }
}

/// What is added to the workload's environment.
fn environment(options: &ExecOptions) -> Result<BTreeMap<String, String>, Problem> {
    if options.argv.is_empty() {
        return Err(Problem::new(Code::Invalid, "no program given"));
    }
    let pair = |pair: &String| match pair.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Problem::new(Code::Invalid, format!("'{pair}' is not NAME=VALUE"))),
    };
    let mut env: BTreeMap<String, String> = options.env.iter().map(pair).collect::<Result<_, _>>()?;
    if options.tty {
        env.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_run_is_refused_with_what_to_do() {
        let long = not_started(NotSent::TooLong);
        assert_eq!(long.code, Code::Invalid);
        assert!(
            long.detail.starts_with("argv and env are longer than 128 KiB together, as JSON; nothing was run"),
            "{long:?}"
        );
        assert_eq!([NotSent::Busy, NotSent::Gone].map(|why| not_started(why).code), [Code::Busy; 2]);
    }
}

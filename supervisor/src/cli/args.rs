//! Arguments, as `docs/CLI.md` lists them.
//!
//! In: the command line and the environment. Out: typed arguments. Must not: read files or talk to anyone.

use std::path::PathBuf;

use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use molt_core::{
    ids::{Digest, Generation, UpdateId},
    spec::Span,
};

use super::fault::Fault;

/// Runs a daemon and updates it in place: a new image, the same sandbox.
#[derive(Debug, Parser)]
#[command(name = "molt", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Args {
    /// Operator socket [default: /run/molt/molt.sock].
    #[arg(long, global = true, env = "MOLT_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub(crate) socket: Option<PathBuf>,
    /// Talk to a gateway and not to a supervisor: update, rollback, apply-order, get, history, events.
    #[arg(long, global = true, env = "MOLT_GATEWAY", value_name = "URL", hide_env_values = true)]
    pub(crate) gateway: Option<String>,
    /// Folder with what proves who you are to the gateway: certificate.pem and key.pem, or token; and ca.pem.
    #[arg(long, global = true, env = "MOLT_GATEWAY_CONFIG", value_name = "DIR", hide_env_values = true)]
    pub(crate) gateway_config: Option<PathBuf>,
    /// How to print data.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// JSON; streams as one document a line.
    Json,
    /// YAML.
    Yaml,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Be PID 1: run the workload and serve the operator socket.
    Init(InitArgs),
    /// Put the workload on a new image.
    Update(UpdateArgs),
    /// Go back to the previous generation, or to another one.
    Rollback(RollbackArgs),
    /// Start the generation that is staged.
    Apply(Wait),
    /// Make the trial permanent now.
    Confirm(Wait),
    /// Give the trial up now: the old version comes back.
    Reject(Wait),
    /// Hand in a signed order: what its key may ask for is done.
    ApplyOrder {
        /// The token; - for standard input.
        file: PathBuf,
        /// The policy it was signed for, where the token does not hold it.
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// To which sandbox; with --gateway only.
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give up an update that has not reached the gate.
    Cancel {
        /// Which one, as in u7; the one under way where absent.
        id: Option<UpdateId>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Hold updates back before they touch the workload.
    Hold {
        /// How long, as in 30m [default: 1h].
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Span>,
        /// Why, for whoever comes next.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Whose it is: the same owner may ask again, another one is refused while it lasts [default: operator].
        #[arg(long, value_name = "NAME")]
        owner: Option<String>,
    },
    /// End the hold.
    Release {
        /// Only if it is this one's.
        #[arg(long, value_name = "NAME")]
        owner: Option<String>,
    },
    /// What runs, and how it is.
    Status {
        /// Show it again whenever it changes.
        #[arg(short, long)]
        watch: bool,
    },
    /// Updates and unconfined commands so far.
    History {
        /// Of which sandbox; with --gateway only.
        name: Option<String>,
        /// Everything that is written down: requests, orders and what was refused, too.
        #[arg(short, long)]
        all: bool,
        /// Only lines of this kind: update, rollback, boot, restart, exec, request, order, refusal, policy, repair.
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// Check that no line was changed, taken out or put in.
        #[arg(long, conflicts_with_all = ["all", "kind"])]
        verify: bool,
    },
    /// What a gateway knows of its sandboxes, or of one; with --gateway only.
    Get {
        /// Which.
        name: Option<String>,
    },
    /// A gateway of one's own, and what it takes.
    Gateway {
        #[command(subcommand)]
        command: GatewayCommand,
    },
    /// A generation, as in 3, or an update, as in u7.
    Show {
        /// Number of a generation or id of an update.
        what: Shown,
        /// With what was seen when it failed: output, probes, exit status.
        #[arg(long)]
        evidence: bool,
    },
    /// What is different between two generations.
    Diff {
        /// From this one.
        from: Generation,
        /// To this one.
        to: Generation,
    },
    /// Events.
    Events {
        /// Of which sandbox; with --gateway only, which has the last 256.
        name: Option<String>,
        /// Go on with those to come.
        #[arg(short, long)]
        follow: bool,
    },
    /// The workload's output.
    Logs {
        /// Go on with what is to come.
        #[arg(short, long)]
        follow: bool,
        /// Only the last lines.
        #[arg(long, value_name = "N")]
        tail: Option<u64>,
    },
    /// Run something inside the workload's sandbox, confined as the workload is unless told otherwise.
    Exec(ExecArgs),
    /// Remove what no kept generation needs.
    Gc,
    /// Digests that failed and are refused.
    Bad {
        #[command(subcommand)]
        command: Bad,
    },
    /// Policy documents.
    Policy {
        #[command(subcommand)]
        command: Policy,
    },
    /// Sandbox specs.
    Spec {
        #[command(subcommand)]
        command: Spec,
    },
    /// Ask the supervisor how it is; for probes of Kubernetes and friends.
    Probe {
        /// startup and live: the supervisor answers. ready: the workload is ready.
        kind: Probe,
    },
    /// Say what this kernel and container give, and what is missing.
    Doctor,
    /// Show an update, a bad image and both kinds of rollback, here and now, with nothing but this program.
    Demo {
        /// Print the steps as JSON.
        #[arg(long)]
        json: bool,
        /// Work in this folder and leave everything there.
        #[arg(long, value_name = "DIR")]
        keep: Option<PathBuf>,
    },
    /// Completions for a shell.
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Pages of the manual.
    Man {
        /// Where they are written; that of molt itself goes to standard output where absent.
        #[arg(value_name = "DIR")]
        folder: Option<PathBuf>,
    },
    /// The version.
    Version,
}

/// `molt init`.
#[derive(Debug, Clone, Default, Group)]
pub(crate) struct InitArgs {
    /// Sandbox spec.
    #[arg(long, env = "MOLT_SPEC", value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// Image to run, in place of the spec's.
    #[arg(long, env = "MOLT_IMAGE", value_name = "REF")]
    pub(crate) image: Option<String>,
    /// Policy to run it under, in place of the spec's.
    #[arg(long, env = "MOLT_POLICY", value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Where images, generations and the journal live [default: /var/lib/molt].
    #[arg(long, env = "MOLT_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Path kept across every generation; may be given more than once.
    #[arg(long, value_name = "PATH")]
    pub(crate) state: Vec<String>,
    /// Name of the sandbox, in place of the spec's.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The operator socket: `--socket` of every command.
    #[arg(skip)]
    pub(crate) socket: Option<PathBuf>,
    /// Program and arguments, in place of the image's.
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// Whether and how long to wait.
#[derive(Debug, Clone, Copy, Default, Group)]
pub(crate) struct Wait {
    /// Wait for the end, at most this long; waiting without an end is the default.
    #[arg(
        long = "wait",
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "no_wait",
        overrides_with = "wait"
    )]
    #[expect(clippy::option_option, reason = "absent, bare and with a value differ, and clap reads all three so")]
    wait: Option<Option<Span>>,
    /// Print the id and return.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

impl Wait {
    /// How long, where there is a limit.
    pub(crate) fn limit(self) -> Option<Span> {
        self.wait.flatten()
    }
}

/// `molt update`.
#[derive(Debug, Group)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub(crate) struct UpdateArgs {
    /// HOST/PATH[:TAG][@DIGEST], or oci:PATH[:TAG] for a layout in the supervisor's root; with --gateway, the name of the
    /// sandbox before it.
    #[arg(value_name = "[NAME] IMAGE", num_args = 1..=2, required_unless_present = "image")]
    words: Vec<String>,
    /// The image, where that is clearer.
    #[arg(long = "image", value_name = "IMAGE")]
    image: Option<String>,
    /// New policy, read here and sent along.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop when it is staged; molt apply goes on.
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) stage_only: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Take an image that failed before.
    #[arg(long)]
    pub(crate) force: bool,
    /// Take a policy that allows more than the one in force.
    #[arg(long)]
    pub(crate) allow_wider: bool,
}

impl UpdateArgs {
    /// Name of the sandbox, if one is given, and the image.
    pub(crate) fn target(&self) -> Result<(Option<String>, String), Fault> {
        match (self.words.as_slice(), &self.image) {
            ([image], None) | ([], Some(image)) => Ok((None, image.clone())),
            ([name, image], None) | ([name], Some(image)) => Ok((Some(name.clone()), image.clone())),
            ([], None) => Err(Fault::Usage("which image? molt update IMAGE".to_owned())),
            _ => Err(Fault::Usage("the image is given twice".to_owned())),
        }
    }
}

/// `molt gateway`.
#[derive(Debug, Subcommand)]
pub(crate) enum GatewayCommand {
    /// Serve a gateway for a handful of sandboxes, by TLS 1.3.
    Serve(ServeArgs),
    /// Make an authority and what it vouches for; what is there is left alone.
    Init {
        /// Where.
        folder: PathBuf,
        /// Name or address by which the gateway is called; may be given more than once [default: localhost, 127.0.0.1].
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// A sandbox; may be given more than once.
        #[arg(long, value_name = "NAME")]
        sandbox: Vec<String>,
        /// An operator; may be given more than once [default: admin].
        #[arg(long, value_name = "NAME")]
        operator: Vec<String>,
    },
    /// Make a bearer token, and print it; the gateway keeps its hash.
    Token {
        /// The gateway's store.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// For which sandbox.
        name: String,
        /// For an operator of that name.
        #[arg(long)]
        operator: bool,
    },
}

/// `molt gateway serve`.
#[derive(Debug, Group)]
pub(crate) struct ServeArgs {
    /// A folder of molt gateway init, in place of what follows.
    #[arg(long, value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
    /// Where to keep what is wanted and what was told.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: std::net::SocketAddr,
    /// The gateway's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Authorities that vouch for sandboxes and operators, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Operators to let in; every one with a certificate where absent.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) operators: Vec<String>,
}

/// `molt rollback`.
#[derive(Debug, Group)]
pub(crate) struct RollbackArgs {
    /// Of which sandbox; with --gateway only.
    pub(crate) name: Option<String>,
    /// Generation to go to; the previous one where absent.
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<Generation>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// `molt exec`.
#[derive(Debug, Group)]
pub(crate) struct ExecArgs {
    /// Forward standard input.
    #[arg(short = 'i', long = "stdin")]
    pub(crate) stdin: bool,
    /// Give it a terminal.
    #[arg(short = 't', long = "tty")]
    pub(crate) tty: bool,
    /// Added to its environment; may be given more than once.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// As root, outside of the sandbox's Landlock and seccomp: nothing holds it back in there; the history has it.
    #[arg(long)]
    pub(crate) unconfined: bool,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

/// `molt bad`.
#[derive(Debug, Subcommand)]
pub(crate) enum Bad {
    /// Which.
    List,
    /// Forget that a digest failed.
    Remove {
        /// sha256:…
        digest: Digest,
    },
}

/// `molt policy`.
#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Read a policy and say everything that is wrong with it.
    Check {
        /// The policy; - for standard input.
        file: PathBuf,
    },
    /// Say what a policy allows that the one in force, or another, does not.
    Diff {
        /// The new policy; - for standard input.
        file: PathBuf,
        /// The image it would run with; the one that runs where absent.
        #[arg(conflicts_with = "against")]
        image: Option<String>,
        /// Compare with this policy and not with what is in force; needs no supervisor.
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
    },
    /// Print the JSON Schema.
    Schema,
}

/// `molt spec`.
#[derive(Debug, Subcommand)]
pub(crate) enum Spec {
    /// Read a spec and say everything that is wrong with it.
    Check {
        /// The spec; - for standard input.
        file: PathBuf,
    },
    /// Print the JSON Schema.
    Schema,
}

/// `molt probe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Probe {
    /// The supervisor answers.
    Startup,
    /// The supervisor answers.
    Live,
    /// The workload is ready.
    Ready,
}

/// What `molt show` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// A generation.
    Generation(Generation),
    /// An update.
    Update(UpdateId),
}

impl std::str::FromStr for Shown {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed =
            if text.starts_with('u') { text.parse().map(Self::Update) } else { text.parse().map(Self::Generation) };
        parsed.map_err(|_| "a generation is a number, as in 3; an update is u and a number, as in u7".to_owned())
    }
}

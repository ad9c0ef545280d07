//! Pulls one image into a store and says how long it took: `cargo run -p molt-oci --example pull -- REF DIR`.

use std::time::{Duration, Instant};

use molt_core::ids::{Digest, ImageRef};
use molt_oci::{Client, LayerState, Limits, Platform, Progress, Registries, Store, need};

struct Print;

impl Progress for Print {
    fn layer(&self, index: usize, digest: &Digest, _: u64, bytes_total: u64, state: LayerState) {
        if state != LayerState::Fetching {
            eprintln!("layer {index} {} {bytes_total} bytes: {state:?}", digest.short());
        }
    }

    fn retry(&self, what: &str, after: Duration, error: &str) {
        eprintln!("{what}: failed to {error}; again in {after:?}");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(reference), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: pull REF DIR (hosts on the loopback interface are spoken to in plain HTTP)".into());
    };
    let reference: ImageRef = reference.parse()?;
    let mut registries =
        Registries { credentials: std::env::var_os("PULL_CREDENTIALS").map(Into::into), ..Registries::default() };
    if let ImageRef::Registry { host, .. } = &reference
        && (host.starts_with("127.") || host.starts_with("localhost"))
    {
        registries.insecure.push(host.clone());
    }
    std::fs::create_dir_all(&dir)?;
    let store = Store::open(std::fs::File::open(&dir)?)?;
    let client = Client::new(&registries, Limits::default())?;
    let start = Instant::now();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
        eprintln!("{} resolved in {:?}: {:?}", resolved.digest, start.elapsed(), need(&resolved, &store));
        let fetched = client.fetch(&resolved, &store, &Print).await?;
        eprintln!("{} layers, {} bytes in {:?}", fetched.layers_fetched, fetched.bytes_fetched, start.elapsed());
        for layer in &fetched.layers {
            println!("{layer}");
        }
        Ok(())
    })
}

//! What the examples have in common: connecting as the operator that `meridian init` made.

use std::error::Error;
use std::path::Path;

use meridian_client::tls::Identity;
use meridian_client::{Client, ClientConfig, Seed};

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// Takes `FOLDER FEDERATION ADDR` off the command line, and connects: the folder holds `ca.pem`,
/// `operator.pem` and `operator.key`, the federation's id stands in every `meridian.toml`, and any
/// region's QUIC address will do. Gives back what else was on the command line.
pub(crate) async fn connect() -> Result<(Client, Vec<String>), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(federation), Some(addr)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: FOLDER FEDERATION ADDR …".into());
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "an application reads its own files"
    )]
    let read = |name| std::fs::read(Path::new(&folder).join(name));
    let identity = Identity::load(
        &read("ca.pem")?,
        &read("operator.pem")?,
        &read("operator.key")?,
    )?;
    let seed = Seed {
        addr: addr.parse()?,
        region: None,
    };
    let endpoint = meridian_client::bind("0.0.0.0:0".parse()?)?;
    let mut config = ClientConfig::new(endpoint, identity, federation.parse()?, vec![seed]);
    config.jitter_seed = u64::from(std::process::id());
    Ok((Client::connect(config).await?, arguments.collect()))
}

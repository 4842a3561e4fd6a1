//! A federation on this machine for one run of a command: folders, certificates, free ports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use meridian_node::config::NodeConfig;
use meridian_node::seams::{HostNetwork, Network, Random, SystemRandom};
use meridian_node::{Node, config, files};
use tokio::time::{Instant, sleep};

use super::init;

const PARTITIONS: u16 = 4;
/// How often ports are looked for before the machine is taken to have none.
const PORT_ATTEMPTS: usize = 50;
/// How long a node may take until it accepts appends.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// Makes a federation of `regions` in `dir`, on ports that are free now.
pub(super) async fn make(dir: &Path, regions: &[&str]) -> anyhow::Result<Vec<NodeConfig>> {
    let plan = init::Plan {
        dir: dir.to_owned(),
        regions: regions.iter().map(|region| (*region).to_owned()).collect(),
        partitions: PARTITIONS,
        base_port: free_ports(regions.len()).await?,
        hosts: BTreeMap::new(),
        data: "data".into(),
    };
    let made = init::make(&plan)?;
    made.regions
        .iter()
        .map(|region| Ok(config::load(&region.config)?.node))
        .collect()
}

/// A port from which on everything that so many regions listen on is free.
async fn free_ports(regions: usize) -> anyhow::Result<u16> {
    let span = u16::try_from(10 * regions).unwrap_or(u16::MAX);
    for _ in 0..PORT_ATTEMPTS {
        let mut random = [0; 2];
        SystemRandom.fill(&mut random);
        // Below the range from which the system hands out ports to outgoing connections.
        let base = 12_000 + u16::from_le_bytes(random) % 18_000;
        let mut free = true;
        for offset in (0..span).step_by(10) {
            let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
            free &= HostNetwork.tcp(at(base + offset)).await.is_ok();
            free &= HostNetwork.udp(at(base + offset + 1)).is_ok();
        }
        if free {
            return Ok(base);
        }
    }
    bail!("no free ports were found on this machine; stop what holds them and try again")
}

/// A folder among the system's temporary files, for a command called `what`. It is not created.
pub(super) fn temporary_folder(what: &str) -> PathBuf {
    let mut random = [0; 4];
    SystemRandom.fill(&mut random);
    files::temporary(&format!(
        "meridian-{what}-{:08x}",
        u32::from_le_bytes(random)
    ))
}

/// Waits until `node` takes appends.
pub(super) async fn ready(node: &Node) -> anyhow::Result<()> {
    let began = Instant::now();
    while let Err(reason) = node.ready() {
        if began.elapsed() > READY_WITHIN {
            bail!("a region takes no writes: {reason}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

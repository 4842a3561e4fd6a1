//! `meridian init`: a federation's authority, certificates and configuration files; one more region is
//! [`super::init_add`]'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use meridian_clock::PhysicalClock;
use meridian_node::Identity;
use meridian_node::certificates::{self, Authority, CERTIFICATE_VALID, Files, Subject};
use meridian_node::config::{self, FileMember, FileText};
use meridian_node::files;
use meridian_node::seams::{Random, SystemClock, SystemRandom};
use meridian_node::session;
use meridian_store::RealDisk;
use serde::Serialize;
use uuid::Uuid;

use super::{Outcome, Output, init_add, wrong_use};

/// The folder of the authority, beside the regions'.
pub(crate) const AUTHORITY_FOLDER: &str = "authority";
/// The folder of the operator's client certificate, beside the regions'.
pub(crate) const OPERATOR_FOLDER: &str = "operator";
/// What the operator is called in its certificate and files.
pub(crate) const OPERATOR: &str = "operator";
/// What a region's certificate files are called.
pub(crate) const REGION_FILE: &str = "region";
/// A region's certificates, below its folder.
pub(crate) const CERTIFICATES_FOLDER: &str = "certificates";
/// The federation's key for session tokens, beside a region's certificates.
pub(crate) const SESSION_KEY_FILE: &str = "session.key";
/// A region's data, below its folder.
const DATA_FOLDER: &str = "data";
/// A region's configuration, in its folder.
pub(crate) const CONFIG_FILE: &str = "meridian.toml";

/// What `meridian init` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to make; it must be empty or missing. With --add, the one that was made
    #[arg(long, value_name = "FOLDER")]
    dir: PathBuf,
    /// The regions' names, with commas between them
    #[arg(
        long,
        value_delimiter = ',',
        required_unless_present = "add",
        value_name = "A,B,C"
    )]
    regions: Vec<String>,
    /// Add one more region to a federation that was made before, with the next free number
    #[arg(long, value_name = "NAME", conflicts_with_all = ["regions", "partitions", "base_port", "data"])]
    add: Option<String>,
    /// How many partitions streams are spread over; fixed for good
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    partitions: u16,
    /// Region i has HTTP on this port + 10·i, and QUIC on the port after
    #[arg(long, default_value_t = 7100, value_parser = clap::value_parser!(u16).range(1..))]
    base_port: u16,
    /// How many nodes a region has; only 1 for now
    #[arg(long, default_value_t = 1)]
    nodes_per_region: u16,
    /// A region on a host of its own, as REGION=HOST, once for each region; all then have the same
    /// ports, and QUIC listens on every address
    #[arg(long = "host", value_name = "REGION=HOST", value_parser = region_and_host)]
    hosts: Vec<(String, String)>,
    /// The data folder that the configurations name, where it is not beside them; what is in a
    /// region's own `data` folder belongs there
    #[arg(long, default_value = DATA_FOLDER, value_name = "FOLDER")]
    data: PathBuf,
}

/// Parses `REGION=HOST`.
fn region_and_host(given: &str) -> Result<(String, String), String> {
    match given.split_once('=') {
        Some((region, host)) if !region.is_empty() && !host.is_empty() => {
            Ok((region.to_owned(), host.to_owned()))
        }
        _ => Err("write REGION=HOST, as in eu-west=203.0.113.7".to_owned()),
    }
}

/// One region of a federation that was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MadeRegion {
    /// The region's name.
    pub(crate) region: String,
    /// Where it answers HTTP, `host:port`.
    pub(crate) http: String,
    /// Where it takes links and clients, `host:port`.
    pub(crate) quic: String,
    /// Its configuration file.
    pub(crate) config: PathBuf,
}

/// A federation that was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    /// Its id.
    pub(crate) federation: Uuid,
    /// How many partitions it has.
    pub(crate) partitions: u16,
    /// Until when its certificates are valid, RFC 3339.
    pub(crate) certificates_until: String,
    /// Its regions, in the order of their numbers.
    pub(crate) regions: Vec<MadeRegion>,
}

/// A federation to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The folder to make it in.
    pub(crate) dir: PathBuf,
    /// The regions' names.
    pub(crate) regions: Vec<String>,
    /// How many partitions it has.
    pub(crate) partitions: u16,
    /// Ports start here.
    pub(crate) base_port: u16,
    /// Each region's host; empty for all regions on this machine.
    pub(crate) hosts: BTreeMap<String, String>,
    /// The data folder that the configurations name.
    pub(crate) data: PathBuf,
}

pub(crate) fn run(args: &Args, output: Output) -> anyhow::Result<Outcome> {
    if args.nodes_per_region != 1 {
        return Err(wrong_use(
            "a region has one node in this version; leave out --nodes-per-region",
        ));
    }
    let mut hosts = BTreeMap::new();
    for (region, host) in &args.hosts {
        if hosts.insert(region.clone(), host.clone()).is_some() {
            return Err(wrong_use(format!("--host names region {region:?} twice")));
        }
    }
    if let Some(name) = &args.add {
        if let Some(stranger) = hosts.keys().find(|region| *region != name) {
            return Err(wrong_use(format!(
                "--host names {stranger:?}, which is not the region that is added"
            )));
        }
        let plan = init_add::Plan {
            dir: &args.dir,
            name,
            host: hosts.get(name).map(String::as_str),
        };
        return init_add::run(&plan, output);
    }
    let made = make(&Plan {
        dir: args.dir.clone(),
        regions: args.regions.clone(),
        partitions: args.partitions,
        base_port: args.base_port,
        hosts,
        data: args.data.clone(),
    })?;
    if output.is_json() {
        output.json(&made)?;
        return Ok(Outcome::Done);
    }
    let row = |region: &MadeRegion| {
        vec![
            region.region.clone(),
            format!("http://{}", region.http),
            region.quic.clone(),
            region.config.display().to_string(),
        ]
    };
    output.table(
        &["region", "HTTP", "QUIC", "configuration"],
        made.regions.iter().map(row).collect(),
    )?;
    let dir = &args.dir;
    output.line(&format!(
        "Federation {} with {} partitions. Certificates are valid until {}.",
        made.federation, made.partitions, made.certificates_until
    ))?;
    if args.hosts.is_empty() {
        output.line("Start each region with: meridian serve --config <configuration>")?;
    } else {
        output.line(&format!(
            "Copy each region's folder to its host. Keep {} here: its key signs new certificates.",
            dir.join(AUTHORITY_FOLDER).display()
        ))?;
    }
    Ok(Outcome::Done)
}

/// Makes the federation.
///
/// # Errors
/// When the plan cannot be meant, the folder is in use, or files cannot be written.
pub(crate) fn make(plan: &Plan) -> anyhow::Result<Made> {
    check(plan)?;
    let empty = files::is_empty_folder(&plan.dir)
        .with_context(|| format!("look into {}", plan.dir.display()))?;
    if !empty {
        return Err(wrong_use(format!(
            "{} is not empty; choose a new folder for a new federation",
            plan.dir.display()
        )));
    }

    let mut id = [0; 16];
    SystemRandom.fill(&mut id);
    let federation = uuid::Builder::from_random_bytes(id).into_uuid();
    let now = SystemClock.now();
    let authority = Authority::create(federation, now)?;
    authority.save(&plan.dir.join(AUTHORITY_FOLDER))?;
    let operator = authority.issue(
        &Subject::Client(OPERATOR.to_owned()),
        now,
        CERTIFICATE_VALID,
    )?;
    Files::in_folder(&plan.dir.join(OPERATOR_FOLDER), OPERATOR).write(&authority, &operator)?;

    // One for all: what one region gave its clients, every region has to be able to check.
    let session_key = session::new_key(&SystemRandom);
    let members = members(plan);
    let mut regions = Vec::new();
    for member in &members {
        let folder = plan.dir.join(&member.name);
        let issued = authority.issue(
            &Subject::Region(member.name.clone()),
            now,
            CERTIFICATE_VALID,
        )?;
        Files::in_folder(&folder.join(CERTIFICATES_FOLDER), REGION_FILE)
            .write(&authority, &issued)?;
        let key = folder.join(CERTIFICATES_FOLDER).join(SESSION_KEY_FILE);
        files::replace(&key, &session_key, 0o600)
            .with_context(|| format!("write {}", key.display()))?;
        let config = folder.join(CONFIG_FILE);
        files::replace(
            &config,
            &text(plan, federation, member, &members).render(),
            0o644,
        )
        .with_context(|| format!("write {}", config.display()))?;
        mark_fresh(plan, federation, member)?;
        regions.push(MadeRegion {
            region: member.name.clone(),
            http: member.http.clone(),
            quic: member.quic.clone(),
            config,
        });
    }
    Ok(Made {
        federation,
        partitions: plan.partitions,
        certificates_until: certificates::rfc3339(operator.not_after),
        regions,
    })
}

// Notes in the data folder that nothing was ever written there. A node that finds its log empty
// without this note takes it for lost, and asks all its peers before it writes.
fn mark_fresh(plan: &Plan, federation: Uuid, own: &FileMember) -> anyhow::Result<()> {
    // Read as if all regions were here: a host's name need not mean anything on this machine.
    let here = Plan {
        hosts: BTreeMap::new(),
        data: DATA_FOLDER.into(),
        ..plan.clone()
    };
    let members = members(&here);
    let own = members.iter().find(|member| member.id == own.id);
    let own = own.context("find the region among its members")?;
    let path = plan.dir.join(&own.name).join(CONFIG_FILE);
    let node = config::parse(&path, &text(&here, federation, own, &members).render())?.node;
    let disk = RealDisk::new(&node.data)
        .with_context(|| format!("open the data folder {}", node.data.display()))?;
    Identity::create_fresh(&disk, &node, &SystemRandom)?;
    Ok(())
}

/// Whether a region can be called `region`.
///
/// # Errors
/// When it cannot.
pub(crate) fn check_region_name(region: &str) -> anyhow::Result<()> {
    certificates::check_name(region).map_err(|error| wrong_use(error.to_string()))?;
    if [AUTHORITY_FOLDER, OPERATOR_FOLDER].contains(&region) || region.starts_with("authority-") {
        return Err(wrong_use(format!(
            "{region:?} is the name of another folder that is made; call the region something else"
        )));
    }
    Ok(())
}

fn check(plan: &Plan) -> anyhow::Result<()> {
    // It is written between quotes.
    if plan.data.to_string_lossy().chars().any(char::is_control) {
        return Err(wrong_use(
            "--data has control characters in it; remove them",
        ));
    }
    for (index, region) in plan.regions.iter().enumerate() {
        check_region_name(region)?;
        if plan.regions[..index].contains(region) {
            return Err(wrong_use(format!(
                "--regions names {region:?} twice; each region has its own name"
            )));
        }
        if !plan.hosts.is_empty() && !plan.hosts.contains_key(region) {
            return Err(wrong_use(format!(
                "there is no --host for region {region:?}; give one for each region, or none at all"
            )));
        }
    }
    if let Some(stranger) = plan.hosts.keys().find(|name| !plan.regions.contains(name)) {
        return Err(wrong_use(format!(
            "--host names {stranger:?}, which is not among --regions"
        )));
    }
    // Also with hosts, where fewer are used: the limit is the same either way.
    let last = 10 * (plan.regions.len() - 1) + 1;
    if usize::from(plan.base_port) + last > usize::from(u16::MAX) {
        return Err(wrong_use(
            "the regions' ports would go beyond 65535; choose a lower --base-port",
        ));
    }
    Ok(())
}

fn members(plan: &Plan) -> Vec<FileMember> {
    let member = |(index, name): (u16, &String)| {
        let host = plan.hosts.get(name);
        let http = plan.base_port + if host.is_some() { 0 } else { 10 * index };
        let host = host.map_or("127.0.0.1".to_owned(), |host| bracketed(host));
        FileMember {
            id: index,
            name: name.clone(),
            quic: format!("{host}:{}", http + 1),
            http: format!("{host}:{http}"),
        }
    };
    (0..).zip(&plan.regions).map(member).collect()
}

/// An IPv6 address stands in brackets before a port.
pub(crate) fn bracketed(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    }
}

fn text(plan: &Plan, federation: Uuid, own: &FileMember, members: &[FileMember]) -> FileText {
    let (listen_http, listen_quic) = if plan.hosts.is_empty() {
        (own.http.clone(), own.quic.clone())
    } else {
        let any = if own.quic.starts_with('[') {
            "[::]"
        } else {
            "0.0.0.0"
        };
        (
            // HTTP has no TLS of its own, so a host does not offer it to the world.
            format!("127.0.0.1:{}", plan.base_port),
            format!("{any}:{}", plan.base_port + 1),
        )
    };
    let operator = Path::new("..").join(OPERATOR_FOLDER);
    FileText {
        federation,
        region: own.name.clone(),
        partitions: plan.partitions,
        listen_http,
        listen_quic,
        data: plan.data.clone(),
        operator: Some((
            operator.join(format!("{OPERATOR}.pem")),
            operator.join(format!("{OPERATOR}.key")),
        )),
        members: members.to_vec(),
    }
}

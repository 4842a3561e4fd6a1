//! A configuration file, from text to a checked [`NodeConfig`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian_client::Limits;
use meridian_clock::RegionId;
use meridian_conflict::{CategoryPolicy, HomeRule, Isolation, Kind, Mode};
use meridian_event::Category;
use meridian_event::block::{BLOCK_BYTES_MAX, BLOCK_RAW_BYTES_MAX};
use serde::Deserialize;
use toml::Spanned;
use uuid::Uuid;

use super::error::ConfigError;
use super::keys::{first_unknown, nearest};
use super::{CertificatePaths, MemberConfig, NodeConfig};
use crate::{certificates, files};

/// The largest batch that may be configured.
const BATCH_BYTES_MOST: u64 = 16 << 20;
/// The smallest segment that may be configured.
const SEGMENT_BYTES_LEAST: u64 = 32 << 20;

// A batch never spans blocks, so the largest one has to fit in a block, beside the names of its
// streams and types; and a block never spans segments.
const _: () = assert!(BATCH_BYTES_MOST < BLOCK_RAW_BYTES_MAX as u64);
const _: () = assert!((BLOCK_BYTES_MAX as u64) < SEGMENT_BYTES_LEAST);

/// What a configuration file says.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// For the node itself.
    pub node: NodeConfig,
    /// The client certificate that commands with `--config` present, from `[operator]`.
    pub operator: Option<CertificatePaths>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    federation: Spanned<String>,
    region: Spanned<String>,
    partitions: Spanned<i64>,
    data: Spanned<PathBuf>,
    session_key: Option<PathBuf>,
    listen: Listen,
    certificates: Certificates,
    operator: Option<Operator>,
    members: Spanned<Vec<Member>>,
    #[serde(default)]
    categories: BTreeMap<Spanned<String>, CategoryTable>,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    clock: ClockTable,
    #[serde(default)]
    failover: FailoverTable,
    #[serde(default)]
    store: StoreTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    http: Spanned<String>,
    quic: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificates {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operator {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    id: Spanned<i64>,
    name: Spanned<String>,
    quic: Spanned<String>,
    http: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CategoryTable {
    #[serde(default)]
    mode: Mode,
    home: Option<Spanned<String>>,
    isolation: Option<Spanned<String>>,
    r#type: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    event_bytes_max: Option<Spanned<i64>>,
    batch_bytes_max: Option<Spanned<i64>>,
    batch_events_max: Option<Spanned<i64>>,
    append_timeout_ms: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClockTable {
    max_offset_ms: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FailoverTable {
    automatic: Option<Spanned<bool>>,
    after_ms: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreTable {
    segment_bytes: Option<Spanned<i64>>,
}

/// Reads and checks the configuration in `path`; relative paths in it start at its folder.
///
/// # Errors
/// When it cannot be read, or anything in it cannot be used.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = files::read_text(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

/// Checks the configuration `text` as if it had been read from `path`.
///
/// # Errors
/// When anything in it cannot be used.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, ConfigError> {
    let reader = Reader { path, text };
    reader.check_keys()?;
    let file: File = toml::from_str(text).map_err(|error| reader.syntax(&error))?;
    reader.settle(file)
}

/// Turns places in the text into errors that name a line.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        ConfigError::Syntax {
            path: self.path.to_owned(),
            line: self.line(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        }
    }

    fn invalid<T>(&self, key: &str, value: &Spanned<T>, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            path: self.path.to_owned(),
            line: self.line(value.span().start),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    fn check_keys(&self) -> Result<(), ConfigError> {
        let root = toml::de::DeTable::parse(self.text).map_err(|error| self.syntax(&error))?;
        let Some(unknown) = first_unknown(root.get_ref()) else {
            return Ok(());
        };
        let hint = match nearest(&unknown.key, unknown.known.iter().copied()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the keys there are: {}", unknown.known.join(", ")),
        };
        Err(ConfigError::UnknownKey {
            path: self.path.to_owned(),
            line: self.line(unknown.at),
            key: unknown.key,
            table: unknown.table,
            hint,
        })
    }

    fn settle(&self, file: File) -> Result<Loaded, ConfigError> {
        let federation = Uuid::try_parse(file.federation.get_ref())
            .ok()
            .filter(|id| !id.is_nil())
            .ok_or_else(|| {
                let reason = "must be the federation's UUID, the same in every region";
                self.invalid("federation", &file.federation, reason)
            })?;
        let partitions = self.within("partitions", &file.partitions, 1, 1024)?;
        if file.data.get_ref().as_os_str().is_empty() {
            return Err(self.invalid("data", &file.data, "must name a folder"));
        }
        let listen_http = self.address("listen.http", &file.listen.http, None)?;
        let listen_quic = self.address("listen.quic", &file.listen.quic, None)?;
        let members = self.members(&file.members, listen_quic)?;
        let region = self.region("region", &file.region, file.region.get_ref(), &members)?;
        let categories = self.categories(&file.categories, &members)?;
        let isolations = self.isolations(&file.categories)?;
        let kinds = self.kinds(&file.categories)?;
        let (limits, segment_bytes) = self.limits(&file.limits, &file.store)?;
        let append_timeout_ms = match &file.limits.append_timeout_ms {
            Some(value) => self.within("limits.append_timeout_ms", value, 100, 600_000)?,
            None => 10_000,
        };
        let max_offset_ms = match &file.clock.max_offset_ms {
            Some(value) => self.within("clock.max_offset_ms", value, 10, 60_000)?,
            None => 500,
        };
        let failover_after = self.failover(&file.failover, members.len())?;
        let authority = self.relative(&file.certificates.authority);
        let operator = file.operator.map(|operator| CertificatePaths {
            authority: authority.clone(),
            certificate: self.relative(&operator.certificate),
            key: self.relative(&operator.key),
        });
        let node = NodeConfig {
            federation,
            region,
            partitions: u16::try_from(partitions).unwrap_or(u16::MAX),
            members,
            data: self.relative(file.data.get_ref()),
            listen_http,
            listen_quic,
            certificates: CertificatePaths {
                authority,
                certificate: self.relative(&file.certificates.certificate),
                key: self.relative(&file.certificates.key),
            },
            session_key: file.session_key.as_deref().map(|key| self.relative(key)),
            categories,
            isolations,
            kinds,
            limits,
            append_timeout: Duration::from_millis(append_timeout_ms),
            max_offset: Duration::from_millis(max_offset_ms),
            failover_after,
            segment_bytes,
        };
        Ok(Loaded { node, operator })
    }

    fn failover(
        &self,
        failover: &FailoverTable,
        members: usize,
    ) -> Result<Option<Duration>, ConfigError> {
        let after_ms = match &failover.after_ms {
            Some(value) => self.within("failover.after_ms", value, 500, 3_600_000)?,
            None => 3_000,
        };
        match &failover.automatic {
            Some(automatic) if *automatic.get_ref() && members < 3 => {
                let reason = format!(
                    "needs three regions, and there are {members}: of two, neither can tell which of \
                     them is cut off; set it to false, and fence a lost region by hand"
                );
                Err(self.invalid("failover.automatic", automatic, reason))
            }
            Some(automatic) if *automatic.get_ref() => Ok(Some(Duration::from_millis(after_ms))),
            _ => Ok(None),
        }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn within(
        &self,
        key: &str,
        value: &Spanned<i64>,
        least: u64,
        most: u64,
    ) -> Result<u64, ConfigError> {
        u64::try_from(*value.get_ref())
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| {
                let reason = format!("is {}; it must be {least} to {most}", value.get_ref());
                self.invalid(key, value, reason)
            })
    }

    /// Resolves `host:port`, to the family of `like` where the host has several addresses.
    fn address(
        &self,
        key: &str,
        value: &Spanned<String>,
        like: Option<SocketAddr>,
    ) -> Result<SocketAddr, ConfigError> {
        let given = value.get_ref();
        let port = given.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(_))) {
            let reason = format!("is {given:?}; write an address and a port, as in 127.0.0.1:7100");
            return Err(self.invalid(key, value, reason));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "names in the configuration are resolved once, before there is a node"
        )]
        let resolved = given.to_socket_addrs();
        let all: Vec<SocketAddr> = match resolved {
            Ok(all) => all.collect(),
            Err(error) => {
                let reason = format!(
                    "is {given:?}, which cannot be resolved ({error}); correct the name, or write an IP address"
                );
                return Err(self.invalid(key, value, reason));
            }
        };
        let alike = |address: &&SocketAddr| {
            like.is_none_or(|like: SocketAddr| like.is_ipv4() == address.is_ipv4())
        };
        match all.iter().find(alike).or(all.first()) {
            Some(address) => Ok(*address),
            None => Err(self.invalid(
                key,
                value,
                format!("is {given:?}, a name without an address"),
            )),
        }
    }

    fn members(
        &self,
        members: &Spanned<Vec<Member>>,
        listen_quic: SocketAddr,
    ) -> Result<Vec<MemberConfig>, ConfigError> {
        if members.get_ref().is_empty() {
            return Err(self.invalid("members", members, "must list every region"));
        }
        let (mut ids, mut names, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut settled = Vec::new();
        for member in members.get_ref() {
            let id = self.within("members.id", &member.id, 0, u64::from(u16::MAX))?;
            let name = member.name.get_ref();
            certificates::check_name(name).map_err(|error| {
                self.invalid("members.name", &member.name, format!("is wrong: {error}"))
            })?;
            if !ids.insert(id) {
                let reason = format!("{id} is used twice; each region has its own number for good");
                return Err(self.invalid("members.id", &member.id, reason));
            }
            if !names.insert(name.clone()) {
                let reason = format!("{name:?} is used twice; each region has its own name");
                return Err(self.invalid("members.name", &member.name, reason));
            }
            let quic = self.address("members.quic", &member.quic, Some(listen_quic))?;
            if !taken.insert(quic) {
                let reason = format!("{quic} is used twice; each region has its own address");
                return Err(self.invalid("members.quic", &member.quic, reason));
            }
            settled.push(MemberConfig {
                id: RegionId(u16::try_from(id).unwrap_or(u16::MAX)),
                name: name.clone(),
                quic,
                http: self.address("members.http", &member.http, None)?,
            });
        }
        Ok(settled)
    }

    fn region(
        &self,
        key: &str,
        value: &Spanned<String>,
        name: &str,
        members: &[MemberConfig],
    ) -> Result<RegionId, ConfigError> {
        if let Some(member) = members.iter().find(|member| member.name == name) {
            return Ok(member.id);
        }
        let names = || members.iter().map(|member| member.name.as_str());
        let hint = match nearest(name, names()) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!(
                "the members are: {}",
                names().collect::<Vec<_>>().join(", ")
            ),
        };
        Err(self.invalid(
            key,
            value,
            format!("names {name:?}, which is not among the members; {hint}"),
        ))
    }

    fn categories(
        &self,
        tables: &BTreeMap<Spanned<String>, CategoryTable>,
        members: &[MemberConfig],
    ) -> Result<BTreeMap<String, CategoryPolicy>, ConfigError> {
        let mut settled = BTreeMap::new();
        for (name, table) in tables {
            let key = format!("categories.{}", name.get_ref());
            Category::new(name.get_ref())
                .map_err(|error| self.invalid(&key, name, format!("is wrong: {error}")))?;
            if name.get_ref().contains('-') {
                let reason = "can never match: a category ends before the first '-' of a stream";
                return Err(self.invalid(&key, name, reason));
            }
            let key = format!("{key}.home");
            let home = match &table.home {
                None => HomeRule::Hash,
                Some(home) if table.mode != Mode::Home => {
                    let reason = "has no effect in this mode, which every region may write; remove it, or set mode = \"home\"";
                    return Err(self.invalid(&key, home, reason));
                }
                Some(home) => match home.get_ref().split_once(':') {
                    None if home.get_ref() == "hash" => HomeRule::Hash,
                    None if home.get_ref() == "creator" => HomeRule::Creator,
                    Some(("fixed", region)) => {
                        HomeRule::Fixed(self.region(&key, home, region, members)?)
                    }
                    _ => {
                        let reason = format!(
                            "is {:?}; write \"hash\", \"creator\", or \"fixed:\" and a region's name",
                            home.get_ref()
                        );
                        return Err(self.invalid(&key, home, reason));
                    }
                },
            };
            let policy = CategoryPolicy {
                mode: table.mode,
                home,
            };
            settled.insert(name.get_ref().clone(), policy);
        }
        Ok(settled)
    }

    fn isolations(
        &self,
        tables: &BTreeMap<Spanned<String>, CategoryTable>,
    ) -> Result<BTreeMap<String, Isolation>, ConfigError> {
        let mut settled = BTreeMap::new();
        for (name, table) in tables {
            let Some(isolation) = &table.isolation else {
                continue;
            };
            let key = format!("categories.{}.isolation", name.get_ref());
            let fenced = match isolation.get_ref().as_str() {
                "available" => false,
                "fenced" => true,
                other => {
                    let reason = format!("is {other:?}; write \"available\" or \"fenced\"");
                    return Err(self.invalid(&key, isolation, reason));
                }
            };
            if fenced && table.mode != Mode::Home {
                let reason = "cannot be \"fenced\" in this mode: every region may write it, so there is no home to fence; remove it, or set mode = \"home\"";
                return Err(self.invalid(&key, isolation, reason));
            }
            if fenced {
                settled.insert(name.get_ref().clone(), Isolation::Fenced);
            }
        }
        Ok(settled)
    }

    fn kinds(
        &self,
        tables: &BTreeMap<Spanned<String>, CategoryTable>,
    ) -> Result<BTreeMap<String, Kind>, ConfigError> {
        let mut settled = BTreeMap::new();
        for (name, table) in tables {
            let key = format!("categories.{}.type", name.get_ref());
            let of_mode = Kind::of_mode(table.mode).map(Kind::name);
            let of_mode = of_mode.collect::<Vec<_>>().join("\", \"");
            let kind = match &table.r#type {
                None if table.mode == Mode::Home => continue,
                None if table.mode == Mode::Lww => Kind::Document,
                None => {
                    let reason = format!(
                        "is missing: say what the category's streams are, with one of \"{of_mode}\""
                    );
                    return Err(self.invalid(&key, name, reason));
                }
                Some(kind) if table.mode == Mode::Home => {
                    let reason = "has no effect in this mode, in which one region orders each stream; remove it, or set mode = \"crdt\" or \"lww\"";
                    return Err(self.invalid(&key, kind, reason));
                }
                Some(kind) => match Kind::parse(kind.get_ref()) {
                    Ok(known) if known.mode() == table.mode => known,
                    _ => {
                        let reason = format!(
                            "is {:?}; in this mode, write one of \"{of_mode}\"",
                            kind.get_ref()
                        );
                        return Err(self.invalid(&key, kind, reason));
                    }
                },
            };
            settled.insert(name.get_ref().clone(), kind);
        }
        Ok(settled)
    }

    /// The request limits, and the segment size that has to hold them.
    fn limits(
        &self,
        limits: &LimitsTable,
        store: &StoreTable,
    ) -> Result<(Limits, u64), ConfigError> {
        let mut settled = Limits::default();
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        if let Some(value) = &limits.batch_bytes_max {
            let most = BATCH_BYTES_MOST;
            settled.batch_bytes_max =
                size(self.within("limits.batch_bytes_max", value, 1024, most)?);
        }
        if let Some(value) = &limits.event_bytes_max {
            let most = settled.batch_bytes_max as u64;
            settled.event_bytes_max =
                size(self.within("limits.event_bytes_max", value, 256, most)?);
        }
        settled.event_bytes_max = settled.event_bytes_max.min(settled.batch_bytes_max);
        if let Some(value) = &limits.batch_events_max {
            settled.batch_events_max =
                size(self.within("limits.batch_events_max", value, 1, 65_536)?);
        }
        let segment_bytes = match &store.segment_bytes {
            Some(value) => {
                self.within("store.segment_bytes", value, SEGMENT_BYTES_LEAST, 4 << 30)?
            }
            None => 64 << 20,
        };
        Ok((settled, segment_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"federation = "5eed0000-0000-4000-8000-000000000000"
region = "us-east"
partitions = 4
data = "data"
[listen]
http = "127.0.0.1:7100"
quic = "127.0.0.1:7101"
[certificates]
authority = "ca.pem"
certificate = "/etc/region.pem"
key = "region.key"
[[members]]
id = 0
name = "us-east"
quic = "127.0.0.1:7101"
http = "127.0.0.1:7100"
[[members]]
id = 1
name = "eu-west"
quic = "localhost:7111"
http = "127.0.0.1:7110"
[categories.cart]
mode = "crdt"
type = "or-set"
[categories.ledger]
home = "fixed:eu-west"
"#;

    fn load_text(text: &str) -> Result<Loaded, ConfigError> {
        parse(Path::new("/etc/meridian/meridian.toml"), text)
    }

    /// The error that `with` in the place of `what` ends in.
    fn refusal(what: &str, with: &str) -> String {
        assert!(SOUND.contains(what), "{what:?} is not in the sound file");
        let outcome = load_text(&SOUND.replacen(what, with, 1));
        outcome.expect_err("a refusal").to_string()
    }

    #[test]
    fn a_sound_file_says_what_it_says() {
        let node = load_text(SOUND).expect("a sound file").node;
        assert_eq!(node.region, RegionId(0));
        assert_eq!(node.data, Path::new("/etc/meridian/data"));
        assert_eq!(node.certificates.certificate, Path::new("/etc/region.pem"));
        assert_eq!(node.certificates.key, Path::new("/etc/meridian/region.key"));
        assert_eq!(
            node.members[1].quic,
            "127.0.0.1:7111".parse().expect("an address")
        );
        assert_eq!(node.categories["cart"].mode, Mode::Crdt);
        assert_eq!(node.categories["ledger"].home, HomeRule::Fixed(RegionId(1)));
        assert!(node.policies().is_ok());
        let created = SOUND.replacen("fixed:eu-west", "creator", 1);
        let node = load_text(&created).expect("a sound file").node;
        assert_eq!(node.categories["ledger"].home, HomeRule::Creator);
    }

    #[test]
    fn a_category_is_available_unless_it_is_fenced() {
        let isolation = |with: &str| {
            let text = SOUND.replacen("home = \"fixed:eu-west\"", with, 1);
            let node = load_text(&text).expect("a sound file").node;
            node.policies().expect("sound policies").isolation("ledger")
        };
        assert_eq!(isolation(""), Isolation::Available);
        assert_eq!(isolation("isolation = \"available\""), Isolation::Available);
        assert_eq!(isolation("isolation = \"fenced\""), Isolation::Fenced);
    }

    #[test]
    fn a_typo_names_its_line_and_the_nearest_key() {
        assert_eq!(
            refusal("partitions", "partition"),
            "/etc/meridian/meridian.toml, line 3: there is no key `partition`; did you mean `partitions`?"
        );
        assert_eq!(
            refusal(
                "http = \"127.0.0.1:7100\"\nquic",
                "htpp = \"127.0.0.1:7100\"\nquic"
            ),
            "/etc/meridian/meridian.toml, line 6: there is no key `htpp` in [listen]; did you mean `http`?"
        );
        assert!(
            refusal("name = \"eu", "nmae = \"eu")
                .contains("line 19: there is no key `nmae` in [members]")
        );
        assert!(
            refusal("mode =", "mood =")
                .ends_with("`mood` in [categories.cart]; did you mean `mode`?")
        );
        assert!(
            refusal("[categories.cart]", "[categorys.cart]")
                .ends_with("did you mean `categories`?")
        );
    }

    #[test]
    fn a_key_that_is_like_no_other_lists_what_there_is() {
        let message = refusal("data = \"data\"", "data = \"data\"\nwallpaper = 1");
        assert!(message.contains("line 5") && message.contains("the keys there are: federation"));
    }

    #[test]
    fn values_of_the_wrong_kind_name_their_line() {
        assert!(
            refusal("partitions = 4", "partitions = \"four\"").contains("line 3: invalid type")
        );
        assert!(refusal("partitions = 4", "partitions = = 4").contains("line 3: "));
        assert!(refusal("region = \"us-east\"\n", "").contains("missing field `region`"));
    }

    #[test]
    fn values_that_cannot_be_meant_say_what_to_write() {
        let claims = [
            ("partitions = 4", "partitions = 0", "must be 1 to 1024"),
            (
                "region = \"us-east\"",
                "region = \"us-eats\"",
                "did you mean \"us-east\"?",
            ),
            ("5eed0000-", "", "must be the federation's UUID"),
            ("id = 1", "id = 0", "0 is used twice"),
            (
                "name = \"eu-west\"",
                "name = \"us-east\"",
                "\"us-east\" is used twice",
            ),
            ("name = \"eu-west\"", "name = \"EU\"", "use 1 to 63 of a-z"),
            (
                "localhost:7111",
                "127.0.0.1:7101",
                "127.0.0.1:7101 is used twice",
            ),
            ("localhost:7111", "localhost", "write an address and a port"),
            ("fixed:eu-west", "fixed:eu-wst", "did you mean \"eu-west\"?"),
            (
                "fixed:eu-west",
                "eu-west",
                "write \"hash\", \"creator\", or \"fixed:\"",
            ),
            (
                "home = \"fixed:eu-west\"",
                "isolation = \"strict\"",
                "`categories.ledger.isolation` is \"strict\"; write \"available\" or \"fenced\"",
            ),
            (
                "mode = \"crdt\"",
                "mode = \"crdt\"\nisolation = \"fenced\"",
                "there is no home to fence",
            ),
            (
                "mode = \"crdt\"",
                "mode = \"crdt\"\nhome = \"hash\"",
                "has no effect in this mode",
            ),
            (
                "mode = \"crdt\"",
                "mode = \"crtd\"",
                "unknown variant `crtd`",
            ),
            ("categories.cart", "categories.a-b", "can never match"),
        ];
        for (what, with, says) in claims {
            let message = refusal(what, with);
            assert!(
                message.contains(says) && message.contains(", line "),
                "{message}"
            );
        }
    }

    #[test]
    fn an_event_may_not_be_larger_than_a_batch() {
        let with = |limits: &str| load_text(&format!("{SOUND}[limits]\n{limits}\n"));
        let message = with("event_bytes_max = 9000000")
            .expect_err("a refusal")
            .to_string();
        assert!(message.contains("limits.event_bytes_max"), "{message}");
        let smaller = with("batch_bytes_max = 2048").expect("a sound file");
        assert_eq!(smaller.node.limits.event_bytes_max, 2048);
        assert!(with("batch_bytes_max = 99000000").is_err());
    }
}

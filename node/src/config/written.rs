//! A configuration file as `meridian init` writes it: every key is there, and explained.

use std::path::PathBuf;

use uuid::Uuid;

/// One entry of `[[members]]`.
#[derive(Clone, Debug)]
pub struct FileMember {
    /// The region's number.
    pub id: u16,
    /// The region's name.
    pub name: String,
    /// Where its node takes links and clients, `host:port`.
    pub quic: String,
    /// Where its node answers HTTP, `host:port`.
    pub http: String,
}

/// What a new configuration file says; what is not here gets its default.
#[derive(Clone, Debug)]
pub struct FileText {
    /// The federation's id.
    pub federation: Uuid,
    /// This node's region.
    pub region: String,
    /// How many partitions the federation has.
    pub partitions: u16,
    /// Where the node keeps its data.
    pub data: PathBuf,
    /// Where HTTP is served, `host:port`.
    pub listen_http: String,
    /// Where QUIC is served, `host:port`.
    pub listen_quic: String,
    /// The client certificate for commands with `--config`, and its key.
    pub operator: Option<(PathBuf, PathBuf)>,
    /// Every region.
    pub members: Vec<FileMember>,
}

impl FileText {
    /// The file.
    pub fn render(&self) -> String {
        // Debug of a string without control characters is a TOML basic string; names and
        // addresses have been checked, paths come from us.
        let Self {
            federation,
            region,
            partitions,
            data,
            listen_http,
            listen_quic,
            ..
        } = self;
        let mut text = format!(
            r#"# One node of a Meridian federation. `meridian serve --config` takes this file.
# Relative paths start at this file's folder. Unknown keys are refused.

# The federation's id: nodes and clients of another federation are turned away. The same everywhere.
federation = "{federation}"

# This node's region, one of the members below.
region = "{region}"

# How many partitions streams are spread over. The same in every region, and fixed for good.
partitions = {partitions}

# Where the node keeps its data. One node per folder.
data = {data:?}

# The key that session tokens are sealed with: the same file in every region, readable by the node's
# user only. A node without it makes tokens that no other region takes. Read when the node starts.
session_key = "certificates/session.key"

[listen]
# HTTP (JSON and Server-Sent Events). It has neither TLS nor log-in of its own: keep it on an
# address that only trusted hosts reach, or behind a reverse proxy.
http = "{listen_http}"
# QUIC: links from other regions, and clients. Both ends show a certificate (mutual TLS 1.3).
quic = "{listen_quic}"

[certificates]
# The authority that every region and client is signed by; several while it is being replaced.
authority = "certificates/ca.pem"
# This region's certificate; it must carry the name <region>.region.meridian.internal.
certificate = "certificates/region.pem"
# Its private key, readable by the node's user only. SIGHUP makes a node read all three again.
key = "certificates/region.key"
"#
        );
        text.push_str(
            "\n# What commands that are given this file (`meridian import --config`) present as clients.\n# A node does not read it; leave the table out where no such command runs.\n",
        );
        match &self.operator {
            Some((certificate, key)) => text.push_str(&format!(
                "[operator]\ncertificate = {certificate:?}\nkey = {key:?}\n"
            )),
            None => text.push_str(
                "# [operator]\n# certificate = \"certificates/operator.pem\"\n# key = \"certificates/operator.key\"\n",
            ),
        }
        text.push_str(
            r#"
# Every region of the federation, this one included; the same list everywhere, but for addresses
# that differ by where they are seen from.
#   id    the region's number, which is never given to another region
#   name  the region's name, as in its certificate: a-z, 0-9 and '-'
#   quic  where its node is reached by links and clients
#   http  where its node answers HTTP
"#,
        );
        for member in &self.members {
            let FileMember {
                id,
                name,
                quic,
                http,
            } = member;
            text.push_str(&format!(
                "[[members]]\nid = {id}\nname = \"{name}\"\nquic = \"{quic}\"\nhttp = \"{http}\"\n\n"
            ));
        }
        text.push_str(
            r#"# How a category's streams are written (a category is a stream's name up to the first '-'). One
# that is not listed is mode = "home" with home = "hash". The same in every region.
#   mode  "home": one region orders each stream; "lww" or "crdt": every region may write it
#   home  in mode "home": "hash" spreads streams over the regions, "fixed:<region>" names one, "creator" is
#         the region where a stream's first event was written
#   isolation  in mode "home", what a home does that cannot reach a majority of the regions: "available"
#         goes on taking writes, which are set aside if the others go on without it; "fenced" refuses
#         them, and acknowledges only what a majority of the regions holds. Two regions have no
#         majority without each other
#   type  what a stream is that every region may write. In mode "lww": "document" (unless given), of which the
#         last write counts, or "fields", of which each field's last write counts. In mode "crdt", where
#         operations merge: "g-counter", "pn-counter", "bounded-counter", "g-set", "or-set", "mv-register"
#         or "or-map"
# [categories.ledger]
# mode = "home"
# home = "fixed:"#,
        );
        text.push_str(region);
        text.push_str(
            r#""
# isolation = "available"
# [categories.cart]
# mode = "crdt"
# type = "or-set"

# What is taken from clients. A request beyond a limit is refused, and nothing of it is written.
[limits]
# The largest event: type, data and metadata together.
event_bytes_max = 1048576
# The largest batch of one append.
batch_bytes_max = 4194304
# The most events in one append.
batch_events_max = 4096
# How long an append may wait for the durability that it asked for, before it is indeterminate.
append_timeout_ms = 10000

[clock]
# How far this node's clock may be from its peers'. Beyond it, the node stops giving out timestamps.
max_offset_ms = 500

[failover]
# Whether the others go on without a lost region by themselves, which needs three regions at least. Else
# an operator decides: `meridian region fence`. The same in every region.
automatic = false
# How long a majority of the regions must not have heard one to take it for lost.
after_ms = 3000

[store]
# The size of a log segment. Each is allocated at once.
segment_bytes = 67108864
"#,
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use meridian_client::Limits;

    use super::super::keys::TABLES;
    use super::super::parse;
    use super::*;

    fn text(operator: bool) -> String {
        let member = |id: u16, name: &str| FileMember {
            id,
            name: name.to_owned(),
            quic: format!("127.0.0.1:{}", 7101 + 10 * id),
            http: format!("127.0.0.1:{}", 7100 + 10 * id),
        };
        let text = FileText {
            federation: Uuid::from_u128(0x5eed),
            region: "us-east".to_owned(),
            partitions: 4,
            data: "data".into(),
            listen_http: "127.0.0.1:7100".to_owned(),
            listen_quic: "127.0.0.1:7101".to_owned(),
            operator: operator.then(|| {
                (
                    PathBuf::from("../operator.pem"),
                    PathBuf::from("../operator.key"),
                )
            }),
            members: vec![member(0, "us-east"), member(1, "eu-west")],
        };
        text.render()
    }

    #[test]
    fn what_is_written_loads_and_says_the_defaults() {
        for operator in [false, true] {
            let loaded = parse(Path::new("/etc/meridian/meridian.toml"), &text(operator))
                .expect("a sound file");
            assert_eq!(loaded.operator.is_some(), operator);
            assert_eq!(loaded.node.limits, Limits::default());
            assert_eq!(loaded.node.append_timeout, Duration::from_secs(10));
            assert_eq!(loaded.node.max_offset, Duration::from_millis(500));
            assert_eq!(loaded.node.data, Path::new("/etc/meridian/data"));
            assert_eq!(loaded.node.own().expect("a member").name, "us-east");
        }
    }

    #[test]
    fn every_key_is_in_the_file_and_explained() {
        let text = text(true);
        for table in TABLES {
            for key in table.keys {
                let is_table = TABLES
                    .iter()
                    .any(|other| other.name.split('.').next() == Some(*key));
                let shown = if is_table {
                    text.contains(&format!("[{key}"))
                } else {
                    text.lines().any(|line| {
                        line.trim_start_matches("# ")
                            .starts_with(&format!("{key} = "))
                    })
                };
                assert!(shown, "`{key}` of [{}] is not in the file", table.name);
            }
        }
        // A comment stands before every setting, or its list explains it.
        let explained = |line: &str| line.starts_with('#');
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let key = pair[1].split(" = ").next().unwrap_or_default();
            let listed = lines
                .iter()
                .any(|line| line.starts_with(&format!("#   {key} ")));
            let setting = pair[1].contains(" = ") && !pair[1].starts_with('#');
            let of_operator = pair[1].contains("operator.");
            assert!(
                !setting || explained(pair[0]) || listed || of_operator,
                "{} is not explained",
                pair[1]
            );
        }
    }
}

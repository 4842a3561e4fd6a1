//! A peer that does not keep to the protocol.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use meridian_client::tls::{Alpn, Identity, PeerName};
use meridian_clock::{Epoch, Position, RegionId, Timestamp};
use meridian_event::Chain;
use meridian_event::frame::{FRAME_HEADER_BYTES, FrameHeader};
use meridian_replication::frame::{
    Head, Heartbeat, Hello, LINK_VERSION_MIN, Lane, Message, Subscribed, Vector,
};
use quinn::{Connection, RecvStream, SendStream};

use super::{FEDERATION, LIFE, log_of};

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A bit of it is flipped.
    Corrupt,
    /// Its format is newer than anyone can read.
    Newer,
}

impl Fault {
    pub const ALL: [Self; 2] = [Self::Corrupt, Self::Newer];

    /// The frame of `message` with this fault.
    pub fn of(self, message: &Message) -> Vec<u8> {
        let mut frame = message.encode();
        match self {
            Self::Corrupt => *frame.last_mut().unwrap() ^= 0x10,
            Self::Newer => frame[4] += 1,
        }
        frame
    }

    /// What the other side is to say about it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Corrupt => "fails its checksum",
            Self::Newer => "is newer than",
        }
    }
}

pub fn hello(region: RegionId, name: &str) -> Hello {
    Hello {
        version_min: LINK_VERSION_MIN,
        version_max: LINK_VERSION_MIN,
        federation: FEDERATION,
        region,
        name: name.to_owned(),
        incarnation: LIFE,
        partitions: 1,
        lane: Lane::Live,
    }
}

/// Claims to hold `position` events of `region`'s log.
pub fn vector(region: RegionId, position: u64) -> Message {
    let head = Head {
        log: log_of(region),
        incarnation: LIFE,
        epoch: Epoch::FIRST,
        position: Position(position),
        chain: Chain([7; 32]),
        timestamp: Timestamp(1),
    };
    Message::Vector(Vector {
        sent: Timestamp(1),
        echo: None,
        heads: vec![head],
        holdings: Vec::new(),
    })
}

pub fn heartbeat() -> Message {
    Message::Heartbeat(Heartbeat {
        promises: Vec::new(),
    })
}

pub fn subscribed() -> Message {
    Message::Subscribed(Subscribed { head: Position(2) })
}

pub struct Stream {
    pub send: SendStream,
    pub recv: RecvStream,
}

impl Stream {
    pub async fn say(&mut self, message: &Message) {
        self.say_bytes(&message.encode()).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        // The other side may have closed already; tests look at how it says so.
        let _ = self.send.write_all(bytes).await;
    }

    /// The next message, if there is one.
    pub async fn hear(&mut self) -> Option<Message> {
        within(self.read()).await
    }

    async fn read(&mut self) -> Option<Message> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.recv.read_exact(&mut header).await.ok()?;
        let header = FrameHeader::parse(&header).unwrap();
        let mut body = vec![0; header.body_bytes];
        self.recv.read_exact(&mut body).await.ok()?;
        header.check(&body).unwrap();
        Some(Message::decode(header.kind, &body.into()).unwrap())
    }
}

// Where the other side does not do what it should, a test fails instead of waiting forever.
async fn within<T>(what: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(20), what).await;
    waited.expect("the other side did nothing for 20 seconds")
}

pub async fn open(connection: &Connection) -> Stream {
    let (send, recv) = connection.open_bi().await.unwrap();
    Stream { send, recv }
}

/// The next stream that the other side opens.
pub async fn accept(connection: &Connection) -> Option<Stream> {
    let (send, recv) = within(connection.accept_bi()).await.ok()?;
    Some(Stream { send, recv })
}

/// Dials `addr`, where the region called `to` listens.
pub async fn dial(
    identity: &Identity,
    to: &str,
    addr: SocketAddr,
) -> (quinn::Endpoint, Connection) {
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let name = PeerName::Region(to.to_owned()).dns_name();
    let config = identity.client_config(Alpn::Link);
    let connection = endpoint.connect_with(config, addr, &name).unwrap();
    (endpoint, connection.await.unwrap())
}

/// Dials and is welcomed. Returns the control stream.
pub async fn join(connection: &Connection, hello: Hello) -> Stream {
    let mut control = open(connection).await;
    control.say(&Message::Hello(hello)).await;
    let answer = control.hear().await;
    assert!(matches!(answer, Some(Message::Welcome(_))), "{answer:?}");
    control
}

/// Listens on `socket`.
pub fn listen(identity: &Identity, socket: UdpSocket) -> quinn::Endpoint {
    quinn::Endpoint::new(
        quinn::EndpointConfig::default(),
        Some(identity.server_config()),
        socket,
        Arc::new(quinn::TokioRuntime),
    )
    .unwrap()
}

/// Takes the next link that comes in and answers its `Hello` with `answer`. Returns the control
/// stream.
pub async fn welcome(endpoint: &quinn::Endpoint, answer: &Message) -> (Connection, Stream) {
    let connection = within(endpoint.accept()).await.unwrap().await.unwrap();
    let mut control = accept(&connection).await.unwrap();
    let said = control.hear().await;
    assert!(matches!(said, Some(Message::Hello(_))), "{said:?}");
    control.say(answer).await;
    (connection, control)
}

/// How and with which words the other side ended the connection.
pub async fn closed(connection: &Connection) -> (u64, String) {
    match within(connection.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("the connection was not closed by the other side but {other:?}"),
    }
}

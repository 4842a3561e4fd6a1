//! Addresses by name.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;

type Resolve = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Turns `host:port` into addresses. The nodes say where they are in this form.
#[derive(Clone)]
pub struct Resolver(Arc<Resolve>);

impl Resolver {
    /// Asks the system for names; addresses are taken as they are.
    pub fn system() -> Self {
        Self::new(|name| {
            Box::pin(async move {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the default; a simulation brings its own resolver"
                )]
                let found = tokio::net::lookup_host(name).await?;
                Ok(found.collect())
            })
        })
    }

    /// Asks `resolve` for names; addresses are taken as they are.
    pub fn new(
        resolve: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self(Arc::new(resolve))
    }

    /// The addresses of `name`.
    pub(crate) async fn addresses(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        match name.parse() {
            Ok(addr) => Ok(vec![addr]),
            Err(_) => (self.0)(name.to_owned()).await,
        }
    }
}

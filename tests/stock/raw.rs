//! A client made of russh: for what the stock one cannot do, and for more of them than a machine has room for.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, Handle, KeyboardInteractiveAuthResponse};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{Channel, Preferred, kex};
use tokio::io::{AsyncRead, AsyncWrite};

/// Takes any host key: others test that.
pub struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// alice's connection to the bastion.
pub struct Raw {
    pub outer: Handle<Trusting>,
    key: Arc<PrivateKey>,
    config: Arc<client::Config>,
}

impl Raw {
    /// Logs in with the key in `key` and, if the bastion asks, the answer of `code`.
    pub async fn login(
        port: u16,
        (user, key): (&str, &Path),
        exchange: kex::Name,
        code: impl FnOnce() -> String,
    ) -> Result<Self, russh::Error> {
        let key = Arc::new(load_secret_key(key, None).unwrap());
        let config = Arc::new(config(exchange));
        let mut outer = client::connect(Arc::clone(&config), ("127.0.0.1", port), Trusting).await?;
        let signed = outer.authenticate_publickey(user, with(&key)).await?;
        if !signed.success() {
            let asked = outer.authenticate_keyboard_interactive_start(user, None).await?;
            assert!(matches!(asked, KeyboardInteractiveAuthResponse::InfoRequest { .. }), "{asked:?}");
            let answered = outer.authenticate_keyboard_interactive_respond(vec![code()]).await?;
            assert!(matches!(answered, KeyboardInteractiveAuthResponse::Success), "{answered:?}");
        }
        Ok(Self { outer, key, config })
    }

    /// A session channel on `instance` through a jump.
    pub async fn jump(
        &self,
        (instance, login): (&str, &str),
    ) -> Result<(Handle<Trusting>, Channel<client::Msg>), russh::Error> {
        let jump = self.outer.channel_open_direct_tcpip(instance, 22, "127.0.0.1", 1).await?;
        let mut inner = connect_on(&self.config, jump.into_stream()).await?;
        assert!(inner.authenticate_publickey(login, with(&self.key)).await?.success());
        let channel = inner.channel_open_session().await?;
        Ok((inner, channel))
    }
}

async fn connect_on<S>(config: &Arc<client::Config>, stream: S) -> Result<Handle<Trusting>, russh::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    client::connect_stream(Arc::clone(config), stream, Trusting).await
}

fn with(key: &Arc<PrivateKey>) -> PrivateKeyWithHashAlg {
    PrivateKeyWithHashAlg::new(Arc::clone(key), None::<HashAlg>)
}

fn config(exchange: kex::Name) -> client::Config {
    let preferred = Preferred { kex: Cow::Owned(vec![exchange]), ..Preferred::default() };
    let inactivity_timeout = Some(Duration::from_secs(600));
    client::Config { preferred, inactivity_timeout, nodelay: true, ..client::Config::default() }
}

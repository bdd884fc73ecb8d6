//! Who we are to the API server and who it is to us: a kubeconfig, or what the kubelet mounts into a pod.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::yaml;
use crate::error::{Context, Error};

/// Far more than a kubeconfig, a token or a bundle of certificates needs.
const FILE_MAX: u64 = 1 << 20;

/// Where to learn how to reach the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A kubeconfig file, YAML or JSON.
    Kubeconfig(PathBuf),
    /// `token` and `ca.crt` in a directory, and the server's address.
    ServiceAccount { dir: PathBuf, server: String },
}

impl Source {
    /// The service account of the pod we run in.
    pub fn in_cluster() -> Result<Source, Error> {
        let var = |name: &str| {
            std::env::var(name).map_err(|_| {
                Error::refused(format!("{name} is not set: not in a pod of a cluster, give a kubeconfig instead"))
            })
        };
        let (host, port) = (var("KUBERNETES_SERVICE_HOST")?, var("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let dir = "/var/run/secrets/kubernetes.io/serviceaccount".into();
        Ok(Source::ServiceAccount { dir, server: format!("https://{host}:{port}") })
    }
}

/// All that is needed to speak to the API server. Holds secrets: it has no `Debug`.
#[derive(Clone, PartialEq)]
pub struct Access {
    /// `https://host:port`, without a slash at its end.
    pub server: String,
    roots: Vec<CertificateDer<'static>>,
    pub bearer: Option<String>,
    identity: Option<Identity>,
}

/// A client certificate and its key, as they stood in the files and as ureq wants them.
#[derive(Clone)]
struct Identity {
    pem: (Vec<u8>, Vec<u8>),
    shown: ClientCert,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        self.pem == other.pem
    }
}

impl Access {
    /// Reads everything anew from the files.
    pub fn load(source: &Source) -> Result<Access, Error> {
        match source {
            Source::Kubeconfig(path) => {
                let dir = path.parent().unwrap_or(Path::new("."));
                let text = read_text(path).context(|| "kubeconfig")?;
                Access::from_kubeconfig(&text, dir).context(|| format!("kubeconfig {}", path.display()))
            }
            Source::ServiceAccount { dir, server } => {
                Access::from_service_account(dir, server).context(|| "service account")
            }
        }
    }

    fn from_service_account(dir: &Path, server: &str) -> Result<Access, Error> {
        let ca = dir.join("ca.crt");
        Ok(Access {
            server: https(server)?,
            roots: certificates(&read_file(&ca)?).context(|| ca.display().to_string())?,
            bearer: Some(token_file(&dir.join("token"))?),
            identity: None,
        })
    }

    /// Relative paths in the text start at `dir`, as kubectl has it.
    pub(super) fn from_kubeconfig(text: &str, dir: &Path) -> Result<Access, Error> {
        let config: Kubeconfig = parse(text)?;
        let name = config.current_context.filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| Error::malformed("current-context is missing"))?;
        let context = find(config.contexts, "contexts", &name)?.context.unwrap_or_default();
        let cluster = find(config.clusters, "clusters", &context.cluster)?.cluster.unwrap_or_default();
        let user = find(config.users, "users", &context.user)?.user.unwrap_or_default();

        let at_cluster = || format!("cluster {:?}", context.cluster);
        let at_user = || format!("user {:?}", context.user);
        let (server, roots) = cluster.read(dir).context(at_cluster)?;
        let identity = user.identity(dir).context(at_user)?;
        let bearer = user.bearer(dir).context(at_user)?;
        user.refuse_others().context(at_user)?;
        Ok(Access { server, roots, bearer, identity })
    }

    /// Whether connections made with one serve the other.
    pub fn same_tls(&self, other: &Access) -> bool {
        self.roots == other.roots && self.identity == other.identity
    }

    /// What ureq needs to trust the server and to show who we are.
    pub fn tls(&self) -> TlsConfig {
        let roots: Vec<_> = self.roots.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
        TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .client_cert(self.identity.as_ref().map(|i| i.shown.clone()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build()
    }
}

impl Identity {
    /// Checks that the key fits the certificate: ureq would panic over it at the first connection.
    fn new(cert: Vec<u8>, key: Vec<u8>) -> Result<Identity, Error> {
        let chain = certificates(&cert).context(|| "client-certificate")?;
        let secret = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|e| Error::malformed(format!("client-key: no private key in PEM: {e}")))?;
        let ours = PrivateKey::from_pem(&key).map_err(|e| Error::malformed(format!("client-key: {e}")))?;
        let shown: Vec<_> = chain.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Error::malformed)?
            .with_root_certificates(RootCertStore::empty())
            .with_client_auth_cert(chain, secret)
            .map_err(|e| Error::malformed(format!("client-key does not fit client-certificate: {e}")))?;
        Ok(Identity { pem: (cert, key), shown: ClientCert::new_with_certs(&shown, ours) })
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    contexts: Option<Vec<NamedContext>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<ContextEntry>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<Value>,
    proxy_url: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ContextEntry {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    exec: Option<Value>,
    auth_provider: Option<Value>,
    username: Option<Value>,
    r#as: Option<Value>,
}

impl Cluster {
    fn read(self, dir: &Path) -> Result<(String, Vec<CertificateDer<'static>>), Error> {
        for (field, set) in [
            ("insecure-skip-tls-verify", self.insecure_skip_tls_verify),
            ("tls-server-name", self.tls_server_name.is_some()),
            ("proxy-url", self.proxy_url.is_some()),
        ] {
            if set {
                return Err(Error::refused(format!("{field} is not supported: remove it")));
            }
        }
        let ca =
            data_or_file("certificate-authority", self.certificate_authority_data, self.certificate_authority, dir)?;
        let ca = ca.ok_or_else(|| Error::malformed("neither certificate-authority nor certificate-authority-data"))?;
        let roots = certificates(&ca).context(|| "certificate-authority")?;
        Ok((https(&self.server)?, roots))
    }
}

impl User {
    fn identity(&self, dir: &Path) -> Result<Option<Identity>, Error> {
        let (cert_data, key_data) = (self.client_certificate_data.clone(), self.client_key_data.clone());
        let cert = data_or_file("client-certificate", cert_data, self.client_certificate.clone(), dir)?;
        let key = data_or_file("client-key", key_data, self.client_key.clone(), dir)?;
        match (cert, key) {
            (Some(cert), Some(key)) => Identity::new(cert, key).map(Some),
            (None, None) => Ok(None),
            (Some(_), None) => Err(Error::malformed("client-certificate without client-key")),
            (None, Some(_)) => Err(Error::malformed("client-key without client-certificate")),
        }
    }

    /// A token in a file wins over one in the text, as with kubectl.
    fn bearer(&self, dir: &Path) -> Result<Option<String>, Error> {
        match (&self.token_file, &self.token) {
            (Some(file), _) => token_file(&dir.join(file)).context(|| "tokenFile").map(Some),
            (None, Some(token)) => bearer(token).context(|| "token").map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Ways to log in that we do not know; better said than found out by a 401.
    fn refuse_others(&self) -> Result<(), Error> {
        for (field, set) in [
            ("exec", self.exec.is_some()),
            ("auth-provider", self.auth_provider.is_some()),
            ("username", self.username.is_some()),
            ("as", self.r#as.is_some()),
        ] {
            if set {
                return Err(Error::refused(format!(
                    "{field} is not supported: give a token, a tokenFile or a client-certificate with its key"
                )));
            }
        }
        Ok(())
    }
}

/// The entry of a list with this name.
fn find<T: Named>(entries: Option<Vec<T>>, list: &str, name: &str) -> Result<T, Error> {
    let entry = entries.into_iter().flatten().find(|e| e.name() == name);
    entry.ok_or_else(|| Error::malformed(format!("{list} has no entry named {name:?}")))
}

trait Named {
    fn name(&self) -> &str;
}

impl Named for NamedCluster {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for NamedContext {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for NamedUser {
    fn name(&self) -> &str {
        &self.name
    }
}

/// JSON is read as JSON (YAML would stumble over tabs), all else as YAML.
fn parse(text: &str) -> Result<Kubeconfig, Error> {
    let value: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_slice(text.as_bytes())?,
        false => yaml::parse(text)?,
    };
    // From text, as all else is read: reading from a `Value` would be code of its own.
    serde_json::from_slice(value.to_string().as_bytes()).map_err(|e| Error::malformed(format!("not a kubeconfig: {e}")))
}

/// `FIELD-data` in base64 wins over `FIELD`, a path.
fn data_or_file(
    field: &str,
    data: Option<String>,
    file: Option<PathBuf>,
    dir: &Path,
) -> Result<Option<Vec<u8>>, Error> {
    if let Some(data) = data.filter(|d| !d.is_empty()) {
        let data: String = data.split_whitespace().collect();
        let bytes = STANDARD.decode(data).map_err(|e| Error::malformed(format!("{field}-data is not base64: {e}")))?;
        return Ok(Some(bytes));
    }
    match file.filter(|f| !f.as_os_str().is_empty()) {
        Some(file) => read_file(&dir.join(file)).context(|| field).map(Some),
        None => Ok(None),
    }
}

/// The certificates of a PEM text. Of a bundle, as elsewhere, those that nobody can use are passed over.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certs = certs.map_err(|e| Error::malformed(format!("broken PEM: {e}")))?;
    match RootCertStore::empty().add_parsable_certificates(certs.clone()) {
        (0, 0) => Err(Error::malformed("no certificate in PEM")),
        (0, _) => Err(Error::malformed("no usable certificate in PEM")),
        _ => Ok(certs),
    }
}

fn https(server: &str) -> Result<String, Error> {
    let server = server.trim_end_matches('/');
    let host = server.strip_prefix("https://").filter(|host| !host.is_empty());
    let fits = host.is_some() && server.parse::<ureq::http::Uri>().is_ok_and(|uri| uri.query().is_none());
    if fits { Ok(server.to_owned()) } else { Err(Error::malformed(format!("server {server:?} is not an https URL"))) }
}

fn token_file(path: &Path) -> Result<String, Error> {
    read_text(path).and_then(|text| bearer(&text).context(|| path.display().to_string()))
}

/// A token that can stand in a header.
fn bearer(token: &str) -> Result<String, Error> {
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::malformed("the token is empty or has characters that no token has"));
    }
    Ok(token.to_owned())
}

fn read_text(path: &Path) -> Result<String, Error> {
    let bytes = read_file(path)?;
    String::from_utf8(bytes).map_err(|_| Error::malformed(format!("{} is not text", path.display())))
}

fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = || -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX { Err(Error::malformed("larger than 1 MiB")) } else { Ok(bytes) }
    };
    read().context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key in PEM.
    fn pem() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["kubernetes".into()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn base64(text: &str) -> String {
        STANDARD.encode(text)
    }

    /// A whole kubeconfig around the fields of a cluster and of a user, in flow style.
    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: here\n\
             contexts:\n- context: {{cluster: c, user: u, namespace: x}}\n  name: here\n\
             clusters:\n- name: other\n- name: c\n  cluster: {{{cluster}}}\n\
             users:\n- name: u\n  user: {{{user}}}\n"
        )
    }

    fn good_cluster() -> String {
        format!("server: 'https://10.0.0.1:6443/', certificate-authority-data: {}", base64(&pem().0))
    }

    fn why_not(text: &str, dir: &Path) -> String {
        Access::from_kubeconfig(text, dir).err().expect("to be refused").to_string()
    }

    /// A directory of its own, gone at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("terway-access-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.join(name), text).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_kubeconfig_with_a_token_is_read() {
        let text = config(&good_cluster(), "token: 0123");
        let access = Access::from_kubeconfig(&text, Path::new("/")).unwrap();
        assert_eq!(access.server, "https://10.0.0.1:6443");
        assert_eq!(access.bearer.as_deref(), Some("0123"));
        assert_eq!(access.roots.len(), 1);
        assert!(access.identity.is_none());
    }

    #[test]
    fn a_kubeconfig_may_be_json_with_tabs() {
        let text = format!(
            "\n{{\n\t\"current-context\": \"a\",\n\t\"contexts\": [{{\"name\": \"a\", \"context\": {{\"cluster\": \"c\", \"user\": \"u\"}}}}],\n\
             \t\"clusters\": [{{\"name\": \"c\", \"cluster\": {{\"server\": \"https://k\", \"certificate-authority-data\": \"{}\"}}}}],\n\
             \t\"users\": [{{\"name\": \"u\", \"user\": {{\"token\": \"t\"}}}}]\n}}",
            base64(&pem().0)
        );
        assert_eq!(Access::from_kubeconfig(&text, Path::new("/")).unwrap().server, "https://k");
    }

    #[test]
    fn paths_are_relative_to_the_kubeconfig() {
        let dir = Dir::new("paths");
        let (cert, key) = pem();
        dir.write("ca.pem", &cert);
        // A kubelet keeps its certificate and key in one file.
        dir.write("both.pem", &format!("{cert}{key}"));
        dir.write("token", "t1\n");
        let cluster = "server: https://k:1, certificate-authority: ca.pem";
        let user = "client-certificate: both.pem, client-key: both.pem, tokenFile: token, token: ignored";
        dir.write("config", &config(cluster, user));
        let access = Access::load(&Source::Kubeconfig(dir.0.join("config"))).unwrap();
        assert_eq!(access.bearer.as_deref(), Some("t1"));
        assert!(access.identity.is_some());
        access.tls();
    }

    #[test]
    fn a_service_account_is_read() {
        let dir = Dir::new("account");
        let source = Source::ServiceAccount { dir: dir.0.clone(), server: "https://[fd00::1]:443".into() };
        let why = Access::load(&source).err().unwrap().to_string();
        let ca = dir.0.join("ca.crt");
        assert_eq!(why, format!("service account: read {}: no such file or directory", ca.display()));
        dir.write("ca.crt", &pem().0);
        dir.write("token", " \n");
        let why = Access::load(&source).err().unwrap().to_string();
        assert!(why.ends_with("token: the token is empty or has characters that no token has"), "{why}");
        dir.write("token", "abc\n");
        assert_eq!(Access::load(&source).unwrap().bearer.as_deref(), Some("abc"));
    }

    #[test]
    fn what_is_wrong_with_a_cluster_is_named() {
        let ca = base64(&pem().0);
        for (cluster, why) in [
            ("server: https://k", "cluster \"c\": neither certificate-authority nor certificate-authority-data"),
            (
                "server: https://k, certificate-authority-data: '%%'",
                "cluster \"c\": certificate-authority-data is not base64: Invalid symbol 37, offset 0.",
            ),
            (
                "server: https://k, certificate-authority-data: YWJj",
                "cluster \"c\": certificate-authority: no certificate in PEM",
            ),
            (
                "server: https://k, certificate-authority: /nowhere/ca",
                "cluster \"c\": certificate-authority: read /nowhere/ca: no such file or directory",
            ),
            (
                "server: https://k, insecure-skip-tls-verify: true",
                "cluster \"c\": insecure-skip-tls-verify is not supported: remove it",
            ),
            ("server: https://k, proxy-url: x", "cluster \"c\": proxy-url is not supported: remove it"),
            (
                &format!("server: http://k, certificate-authority-data: {ca}"),
                "cluster \"c\": server \"http://k\" is not an https URL",
            ),
            (
                &format!("server: 'https://k k', certificate-authority-data: {ca}"),
                "cluster \"c\": server \"https://k k\" is not an https URL",
            ),
            (&format!("certificate-authority-data: {ca}"), "cluster \"c\": server \"\" is not an https URL"),
        ] {
            assert_eq!(why_not(&config(cluster, ""), Path::new("/")), why);
        }
    }

    #[test]
    fn what_is_wrong_with_a_user_is_named() {
        let ((cert, key), (_, other_key)) = (pem(), pem());
        let (cert, key, other_key) = (base64(&cert), base64(&key), base64(&other_key));
        let others = "is not supported: give a token, a tokenFile or a client-certificate with its key";
        for (user, why) in [
            ("exec: {command: aws}".to_owned(), format!("user \"u\": exec {others}")),
            ("auth-provider: {name: gcp}".to_owned(), format!("user \"u\": auth-provider {others}")),
            ("username: a, password: b".to_owned(), format!("user \"u\": username {others}")),
            (
                "token: \"a b\"".into(),
                "user \"u\": token: the token is empty or has characters that no token has".into(),
            ),
            (
                "tokenFile: /nowhere/t".into(),
                "user \"u\": tokenFile: read /nowhere/t: no such file or directory".into(),
            ),
            (format!("client-certificate-data: {cert}"), "user \"u\": client-certificate without client-key".into()),
            (format!("client-key-data: {key}"), "user \"u\": client-key without client-certificate".into()),
            (
                format!("client-certificate-data: {cert}, client-key-data: YWJj"),
                "user \"u\": client-key: no private key in PEM: no items found".into(),
            ),
            (
                format!("client-certificate-data: {cert}, client-key-data: {other_key}"),
                "user \"u\": client-key does not fit client-certificate: keys may not be consistent: KeyMismatch"
                    .into(),
            ),
        ] {
            assert_eq!(why_not(&config(&good_cluster(), &user), Path::new("/")), why);
        }
    }

    #[test]
    fn what_is_wrong_with_the_whole_is_named() {
        for (text, why) in [
            ("", "not a kubeconfig: invalid type: null"),
            ("a: [", "line "),
            ("{\"a\": ", "not the JSON we expect: EOF while parsing"),
            ("clusters: []", "current-context is missing"),
            ("current-context: \"\"\ncontexts: null", "current-context is missing"),
            ("current-context: x\ncontexts: null", "contexts has no entry named \"x\""),
            ("current-context: x", "contexts has no entry named \"x\""),
            ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "clusters has no entry named \"c\""),
            (
                "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c}]",
                "users has no entry named \"u\"",
            ),
            ("clusters: 5", "not a kubeconfig: invalid type: string \"5\", expected a sequence"),
        ] {
            let said = why_not(text, Path::new("/"));
            assert!(said.starts_with(why), "{said}");
        }
        let why = Access::load(&Source::Kubeconfig("/nowhere/config".into())).err().unwrap().to_string();
        assert_eq!(why, "kubeconfig: read /nowhere/config: no such file or directory");
    }

    #[test]
    fn no_damage_to_a_kubeconfig_makes_the_reader_panic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let whole = config(&good_cluster(), "token: t").into_bytes();
        for _ in 0..3_000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..8) {
                let at = rng.usize(..bytes.len());
                match rng.u8(..4) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes.truncate(at + 1),
                    2 if at > 0 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"{}[]:-'\"\n &*!|>"[rng.usize(..15)]),
                }
            }
            if let Ok(access) = Access::from_kubeconfig(&String::from_utf8_lossy(&bytes), Path::new("/nowhere")) {
                access.tls();
            }
        }
    }
}

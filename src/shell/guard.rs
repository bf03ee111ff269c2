//! Where this program lets strangers send it: URLs out of requests must not reach what only its own network can reach.
//!
//! The policy is [`refuse`], a function of an address, and the list of exceptions in an [`AddressGuard`]. A client made
//! by [`AddressGuard::client`] connects only to addresses that the guard was asked about when it looked up the name:
//! there is no second look-up that could answer differently. Addresses that stand in the URL itself never reach a
//! resolver, so [`AddressGuard::check`] must be called with every URL before it is used, redirects included, which the
//! client does not follow.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use url::{Host, Url};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What kind of address is not reached for strangers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `0.0.0.0/8`, `::`: often this machine.
    Unspecified,
    /// This machine.
    Loopback,
    /// A private network, unique-local and site-local addresses included.
    Private,
    /// `100.64.0.0/10`, between a provider and its customers.
    CarrierGradeNat,
    /// The same link.
    LinkLocal,
    /// Where clouds tell a machine its credentials.
    Metadata,
    /// More than one machine.
    Multicast,
    /// Not for use on the public internet.
    Reserved,
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unspecified => "an unspecified",
            Self::Loopback => "a loopback",
            Self::Private => "a private",
            Self::CarrierGradeNat => "a carrier's internal",
            Self::LinkLocal => "a link-local",
            Self::Metadata => "a cloud's metadata",
            Self::Multicast => "a multicast",
            Self::Reserved => "a reserved",
        })
    }
}

/// Why `address` is not on the public internet; nothing when it is.
///
/// IPv6 addresses that stand for an IPv4 address are judged as that one. The ranges are IANA's special-purpose
/// registries; of IPv6, everything outside of global unicast is refused.
pub fn refuse(address: IpAddr) -> Option<Reason> {
    match address {
        IpAddr::V4(address) => refuse_v4(address),
        IpAddr::V6(address) => refuse_v6(address),
    }
}

fn refuse_v4(address: Ipv4Addr) -> Option<Reason> {
    match address.octets() {
        [169, 254, 169, 254] | [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, 192] => Some(Reason::Metadata),
        [0, ..] => Some(Reason::Unspecified),
        [127, ..] => Some(Reason::Loopback),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some(Reason::Private),
        [100, 64..=127, ..] => Some(Reason::CarrierGradeNat),
        [169, 254, ..] => Some(Reason::LinkLocal),
        [224..=239, ..] => Some(Reason::Multicast),
        // Protocol assignments, documentation, old 6to4 relays, benchmarks, future use and broadcast.
        [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some(Reason::Reserved),
        [192, 88, 99, _] | [198, 18 | 19, ..] | [240..=255, ..] => Some(Reason::Reserved),
        _ => None,
    }
}

fn refuse_v6(address: Ipv6Addr) -> Option<Reason> {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        refuse_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Reason::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Reason::Loopback),
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Some(Reason::Metadata),
        // Mapped, translated, compatible, NAT64 and 6to4 addresses. Connections to the first kind end at the IPv4
        // address in them, to the others at that of a gateway's choice.
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0, 0, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        [0x64, 0xff9b, ..] => Some(Reason::Private),
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Some(Reason::Private),
        [0xfe80..=0xfebf, ..] => Some(Reason::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Reason::Multicast),
        // Protocol assignments with Teredo, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some(Reason::Reserved),
        [0x2000..=0x3fff, ..] => None,
        _ => Some(Reason::Reserved),
    }
}

/// Which hosts strangers may name: those on the public internet, and the exceptions of a list.
///
/// Read from text like `localhost,10.1.0.0/16,::1`. Hosts, addresses and networks in the list may be anywhere and may
/// be spoken to without TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressGuard {
    allowed: Vec<Allowed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    Host(String),
    Network { address: IpAddr, prefix: u32 },
}

/// An entry of the list that is no host, address or network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not a host name, an address or a network such as 10.1.0.0/16")]
pub struct InvalidEntry {
    /// What stands there.
    pub entry: String,
}

/// A URL that is not followed for strangers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not https.
    #[error("the URL has the scheme {scheme}, allowed: https")]
    Scheme {
        /// Which.
        scheme: String,
    },
    /// User or password.
    #[error("the URL has a user name or a password, allowed: none")]
    Credentials,
    /// The host is where strangers have no business. The address itself is not told: it describes the network here.
    #[error("the host {host} has {reason} address, allowed: addresses on the public internet")]
    Address {
        /// The host as it stands in the URL.
        host: String,
        /// What is wrong with its address.
        reason: Reason,
    },
}

impl FromStr for AddressGuard {
    type Err = InvalidEntry;

    fn from_str(text: &str) -> Result<Self, InvalidEntry> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Ok(Self { allowed: entries.map(str::parse).collect::<Result<_, _>>()? })
    }
}

impl FromStr for Allowed {
    type Err = InvalidEntry;

    fn from_str(entry: &str) -> Result<Self, InvalidEntry> {
        let invalid = || InvalidEntry { entry: entry.to_owned() };
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        if let Some((address, prefix)) = entry.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| invalid())?;
            let prefix: u32 = prefix.parse().map_err(|_| invalid())?;
            return if prefix <= bits(address) { Ok(Self::Network { address, prefix }) } else { Err(invalid()) };
        }
        if let Ok(address) = entry.parse() {
            return Ok(Self::Network { address, prefix: bits(address) });
        }
        match Host::parse(entry) {
            Ok(Host::Domain(name)) => Ok(Self::Host(canonical(&name))),
            Ok(Host::Ipv4(_) | Host::Ipv6(_)) | Err(_) => Err(invalid()),
        }
    }
}

fn canonical(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl Allowed {
    fn has_host(&self, host: &str) -> bool {
        matches!(self, Self::Host(name) if *name == canonical(host))
    }

    fn has_address(&self, candidate: IpAddr) -> bool {
        let Self::Network { address, prefix } = self else { return false };
        match (address, candidate.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(candidate)) => {
                (network.to_bits() ^ candidate.to_bits()).leading_zeros() >= *prefix
            }
            (IpAddr::V6(network), IpAddr::V6(candidate)) => {
                (network.to_bits() ^ candidate.to_bits()).leading_zeros() >= *prefix
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl AddressGuard {
    fn allows_host(&self, host: &str) -> bool {
        self.allowed.iter().any(|entry| entry.has_host(host))
    }

    fn allows_address(&self, address: IpAddr) -> bool {
        self.allowed.iter().any(|entry| entry.has_address(address))
    }

    /// All that can be said about a URL without looking up its host.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        let scheme = || Refused::Scheme { scheme: url.scheme().to_owned() };
        let host = url.host().filter(|_| matches!(url.scheme(), "https" | "http")).ok_or_else(scheme)?;
        let (listed, address) = match host {
            Host::Domain(name) => (self.allows_host(name), None),
            Host::Ipv4(address) => (self.allows_address(address.into()), Some(IpAddr::V4(address))),
            Host::Ipv6(address) => (self.allows_address(address.into()), Some(IpAddr::V6(address))),
        };
        if let Some(address) = address {
            self.check_addresses(&host.to_string(), [address])?;
        }
        if url.scheme() == "http" && !listed {
            return Err(scheme());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        Ok(())
    }

    /// Whether `host` may have all of `addresses`: one bad one is a reason to believe none.
    ///
    /// # Errors
    /// [`Refused::Address`].
    pub fn check_addresses(&self, host: &str, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Refused> {
        if self.allows_host(host) {
            return Ok(());
        }
        let judged = addresses.into_iter().filter(|address| !self.allows_address(*address)).find_map(refuse);
        match judged {
            Some(reason) => Err(Refused::Address { host: host.to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// A client that looks up names under this guard, and does nothing else that was not asked for: no redirects, no
    /// proxies, no cookies, no decompression.
    ///
    /// # Errors
    /// reqwest's, when TLS cannot be set up.
    pub fn client(&self) -> Result<reqwest::Client, reqwest::Error> {
        reqwest::Client::builder()
            .user_agent(concat!("darkroom/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(GuardedResolver(self.clone()))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .build()
    }
}

/// The refusal that made `error`, if it was one.
pub fn refusal<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Refused> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

struct GuardedResolver(AddressGuard);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        Box::pin(async move {
            // reqwest replaces port 0 by that of the URL.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            guard.check_addresses(name.as_str(), found.iter().map(SocketAddr::ip))?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_on_the_public_internet_are_reached() {
        let table = [
            ("8.8.8.8", None),
            ("172.15.0.1", None),
            ("172.32.0.1", None),
            ("100.63.0.1", None),
            ("100.128.0.1", None),
            ("169.253.0.1", None),
            ("192.0.1.1", None),
            ("198.20.0.1", None),
            ("223.255.255.255", None),
            ("0.0.0.0", Some(Reason::Unspecified)),
            ("0.1.2.3", Some(Reason::Unspecified)),
            ("127.0.0.1", Some(Reason::Loopback)),
            ("127.255.0.9", Some(Reason::Loopback)),
            ("10.0.0.1", Some(Reason::Private)),
            ("172.16.0.1", Some(Reason::Private)),
            ("172.31.255.255", Some(Reason::Private)),
            ("192.168.1.1", Some(Reason::Private)),
            ("100.64.0.1", Some(Reason::CarrierGradeNat)),
            ("100.127.255.255", Some(Reason::CarrierGradeNat)),
            ("169.254.1.1", Some(Reason::LinkLocal)),
            ("169.254.169.254", Some(Reason::Metadata)),
            ("168.63.129.16", Some(Reason::Metadata)),
            ("100.100.100.200", Some(Reason::Metadata)),
            ("192.0.0.192", Some(Reason::Metadata)),
            ("224.0.0.1", Some(Reason::Multicast)),
            ("239.255.255.255", Some(Reason::Multicast)),
            ("192.0.0.1", Some(Reason::Reserved)),
            ("192.0.2.1", Some(Reason::Reserved)),
            ("192.88.99.1", Some(Reason::Reserved)),
            ("198.18.0.1", Some(Reason::Reserved)),
            ("198.51.100.1", Some(Reason::Reserved)),
            ("203.0.113.1", Some(Reason::Reserved)),
            ("240.0.0.1", Some(Reason::Reserved)),
            ("255.255.255.255", Some(Reason::Reserved)),
            ("2606:4700:4700::1111", None),
            ("2001:4860:4860::8888", None),
            ("2001:200::1", None),
            ("::", Some(Reason::Unspecified)),
            ("::1", Some(Reason::Loopback)),
            ("::ffff:8.8.8.8", None),
            ("::ffff:127.0.0.1", Some(Reason::Loopback)),
            ("::ffff:10.0.0.1", Some(Reason::Private)),
            ("::ffff:169.254.169.254", Some(Reason::Metadata)),
            ("::ffff:0:127.0.0.1", Some(Reason::Loopback)),
            ("::127.0.0.1", Some(Reason::Loopback)),
            ("64:ff9b::8.8.8.8", None),
            ("64:ff9b::127.0.0.1", Some(Reason::Loopback)),
            ("64:ff9b::192.168.0.1", Some(Reason::Private)),
            ("64:ff9b:1::8.8.8.8", Some(Reason::Private)),
            ("2002:808:808::1", None),
            ("2002:7f00:1::1", Some(Reason::Loopback)),
            ("2002:a9fe:a9fe::1", Some(Reason::Metadata)),
            ("2001::1", Some(Reason::Reserved)),
            ("2001:0:7f00:1::1", Some(Reason::Reserved)),
            ("2001:db8::1", Some(Reason::Reserved)),
            ("3fff::1", Some(Reason::Reserved)),
            ("100::1", Some(Reason::Reserved)),
            ("5f00::1", Some(Reason::Reserved)),
            ("4000::1", Some(Reason::Reserved)),
            ("fc00::1", Some(Reason::Private)),
            ("fd12:3456::1", Some(Reason::Private)),
            ("fd00:ec2::254", Some(Reason::Metadata)),
            ("fec0::1", Some(Reason::Private)),
            ("fe80::1", Some(Reason::LinkLocal)),
            ("febf::1", Some(Reason::LinkLocal)),
            ("ff02::1", Some(Reason::Multicast)),
        ];
        for (address, expected) in table {
            assert_eq!(refuse(address.parse().unwrap()), expected, "{address}");
        }
    }

    fn check(allowed: &str, url: &str) -> Result<(), Refused> {
        allowed.parse::<AddressGuard>().unwrap().check(&Url::parse(url).unwrap())
    }

    #[test]
    fn urls_are_judged_by_scheme_host_and_credentials() {
        let scheme = |scheme: &str| Err(Refused::Scheme { scheme: scheme.into() });
        let address = |host: &str, reason| Err(Refused::Address { host: host.into(), reason });
        for (allowed, url, expected) in [
            ("", "https://example.com/a.png", Ok(())),
            ("", "https://8.8.8.8/a.png", Ok(())),
            ("", "http://example.com/a.png", scheme("http")),
            ("", "http://8.8.8.8/a.png", scheme("http")),
            ("", "ftp://example.com/a.png", scheme("ftp")),
            ("localhost", "ftp://localhost/a.png", scheme("ftp")),
            ("", "file:///etc/passwd", scheme("file")),
            ("", "gopher://127.0.0.1/", scheme("gopher")),
            ("", "https://user@example.com/", Err(Refused::Credentials)),
            ("", "https://user:password@example.com/", Err(Refused::Credentials)),
            ("", "https://127.0.0.1/", address("127.0.0.1", Reason::Loopback)),
            ("", "http://127.0.0.1/", address("127.0.0.1", Reason::Loopback)),
            // However it is written.
            ("", "https://0x7f.1/", address("127.0.0.1", Reason::Loopback)),
            ("", "https://2130706433/", address("127.0.0.1", Reason::Loopback)),
            ("", "https://0251.0376.0251.0376/", address("169.254.169.254", Reason::Metadata)),
            ("", "https://[::ffff:10.0.0.1]/", address("[::ffff:a00:1]", Reason::Private)),
            ("", "https://[::1]/", address("[::1]", Reason::Loopback)),
            ("localhost", "http://localhost:8080/a.png", Ok(())),
            ("localhost", "http://LOCALHOST./a.png", Ok(())),
            ("localhost", "http://127.0.0.1/a.png", address("127.0.0.1", Reason::Loopback)),
            ("127.0.0.1", "http://127.0.0.1/a.png", Ok(())),
            ("127.0.0.1", "http://127.0.0.2/a.png", address("127.0.0.2", Reason::Loopback)),
            (" 10.1.0.0/16 , ::1", "http://10.1.255.1/", Ok(())),
            ("10.1.0.0/16,::1", "http://[::ffff:10.1.0.1]/", Ok(())),
            ("10.1.0.0/16,::1", "https://10.2.0.1/", address("10.2.0.1", Reason::Private)),
            ("10.1.0.0/16,::1", "http://[::1]/", Ok(())),
            ("0.0.0.0/0", "http://192.168.0.1/", Ok(())),
            ("fd00::/8", "https://[fd12::1]/", Ok(())),
        ] {
            assert_eq!(check(allowed, url), expected, "{url} with {allowed:?} allowed");
        }
    }

    #[test]
    fn one_bad_address_of_a_host_is_enough() {
        let guard: AddressGuard = "10.0.0.0/8,inside.example".parse().unwrap();
        let judged = |host: &str, addresses: &[&str]| {
            guard.check_addresses(host, addresses.iter().map(|address| address.parse().unwrap())).is_ok()
        };
        assert!(judged("example.com", &["8.8.8.8", "2606:4700:4700::1111"]));
        assert!(!judged("example.com", &["8.8.8.8", "127.0.0.1"]));
        assert!(!judged("example.com", &["8.8.8.8", "::ffff:192.168.0.1"]));
        assert!(judged("example.com", &["8.8.8.8", "10.0.0.1"]));
        assert!(judged("inside.example", &["192.168.0.1"]));
        assert!(!judged("not-inside.example", &["192.168.0.1"]));
    }

    #[test]
    fn a_wrong_list_is_refused() {
        for entry in ["10.0.0.0/33", "::/129", "host/8", "10.0.0.0/", "a b", "http://localhost", "[::1]"] {
            let error = format!("localhost,{entry}").parse::<AddressGuard>().unwrap_err();
            assert_eq!(error.entry, entry);
        }
        assert_eq!("".parse(), Ok(AddressGuard::default()));
        assert_eq!(" , ".parse(), Ok(AddressGuard::default()));
    }
}

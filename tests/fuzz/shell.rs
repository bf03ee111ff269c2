//! What requests and operators name: addresses, URLs, settings.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use darkroom::shell::config::{parse_bytes, parse_duration};
use darkroom::shell::fetch;
use darkroom::shell::guard::{AddressGuard, refuse};
use url::{Host, Url};

/// What the standard library and the shape of an address say, independent of the guard's table.
fn looks_internal(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
        }
        IpAddr::V6(v6) => {
            let [.., high, low] = v6.segments();
            let inside = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
            let compatible = v6.segments()[..6] == [0; 6] || v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || (compatible && looks_internal(inside.into()))
        }
    }
}

/// The bytes of an address, which is also tried as one that is mapped into IPv6.
pub(crate) fn address(bytes: &[u8]) {
    let mut addresses = Vec::new();
    if let Some(octets) = bytes.first_chunk::<4>() {
        let v4 = Ipv4Addr::from(*octets);
        addresses.extend([IpAddr::V4(v4), v4.to_ipv6_mapped().into(), v4.to_ipv6_compatible().into()]);
        let [a, b, c, d] = octets.map(u16::from);
        let (high, low) = ((a << 8) | b, (c << 8) | d);
        addresses.push(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into());
        addresses.push(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into());
        let judged: Vec<_> = addresses[1..].iter().map(|address| refuse(*address).is_some()).collect();
        if looks_internal(v4.into()) {
            assert_eq!(judged, [true; 4], "{v4} in IPv6");
        }
    }
    addresses.extend(bytes.first_chunk::<16>().map(|octets| IpAddr::V6(Ipv6Addr::from(*octets))));
    let guard = AddressGuard::default();
    for address in addresses {
        assert!(!looks_internal(address) || refuse(address).is_some(), "{address}");
        assert_eq!(guard.check_addresses("example.com", [address]).is_err(), refuse(address).is_some());
    }
}

/// The first line is a guard's list, the rest a URL.
pub(crate) fn url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (list, rest) = text.split_once('\n').unwrap_or(("", &text));
    let Ok(url) = Url::parse(rest) else { return };
    if let Ok(guard) = list.parse::<AddressGuard>() {
        let _ = guard.check(&url);
    }
    if AddressGuard::default().check(&url).is_ok() {
        assert_eq!(url.scheme(), "https", "{url}");
        assert!(url.username().is_empty() && url.password().is_none(), "{url}");
        match url.host().unwrap() {
            Host::Domain(name) => assert!(!name.is_empty() && name.parse::<IpAddr>().is_err(), "{url}"),
            Host::Ipv4(address) => assert!(!looks_internal(address.into()), "{url}"),
            Host::Ipv6(address) => assert!(!looks_internal(address.into()), "{url}"),
        }
    }
}

pub(crate) fn data_url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for bytes_max in [0, 1, 16, 1 << 20] {
        if let Ok(Some(content)) = fetch::data_url(&text, bytes_max) {
            assert!(content.len() <= bytes_max);
            let (_, encoded) = text.split_once(',').unwrap();
            assert_eq!(STANDARD.encode(&content).trim_end_matches('='), encoded.trim_end_matches('='));
        }
    }
}

pub(crate) fn setting(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (parse_bytes(&text), parse_duration(&text));
    if let Ok(guard) = text.parse::<AddressGuard>() {
        for address in ["127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "fd00::1"] {
            let _ = guard.check_addresses("localhost", [address.parse().unwrap()]);
        }
    }
}

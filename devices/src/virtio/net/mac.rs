//! Addresses of network interfaces.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The address of an Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "the address of an interface is six pairs of hexadecimal digits, such as 02:00:00:00:00:01"
)]
pub struct MacError;

impl Mac {
    /// The address of these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in the order that they are sent and written in.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = MacError;

    /// An address of one interface: not of a group of them, and not zero.
    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or(MacError)?;
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| MacError)?;
        }
        let is_group = bytes[0] & 1 != 0;
        if pairs.next().is_some() || is_group || bytes == [0; 6] {
            return Err(MacError);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let mac = Mac::new([0x02, 0, 0xab, 0xcd, 0xef, 0x01]);
        assert_eq!(mac.to_string(), "02:00:ab:cd:ef:01");
        assert_eq!("02:00:AB:cd:ef:01".parse(), Ok(mac));
        for text in [
            "",
            "02:00:ab:cd:ef",
            "02:00:ab:cd:ef:01:",
            "02:00:ab:cd:ef:01:02",
            "2:0:ab:cd:ef:1",
            "02:00:ab:cd:ef:+1",
            "02-00-ab-cd-ef-01",
            "01:00:ab:cd:ef:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacError), "{text}");
        }
    }
}

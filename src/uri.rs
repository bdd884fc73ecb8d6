//! Percent-encoding: what a name or value must become to stand in a URL, or in the text of a signature.

/// Encodes every byte but the unreserved ones of [RFC 3986](https://www.rfc-editor.org/rfc/rfc3986#section-2.3).
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        assert_eq!(percent_encode("AZaz09-_.~"), "AZaz09-_.~");
        assert_eq!(percent_encode(" *+/=&%:\"\n"), "%20%2A%2B%2F%3D%26%25%3A%22%0A");
        assert_eq!(percent_encode("节"), "%E8%8A%82");
        assert_eq!(percent_encode(""), "");
    }
}

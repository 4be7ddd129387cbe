use super::*;

const TOKEN: &str = "a-token-of-the-tests";
const READ_TOKEN: &str = "another-token-to-read";

fn access(token: bool, read_token: bool) -> Access {
    Access::new(&ApiSettings {
        addr: "127.0.0.1:0".parse().expect("an address"),
        token: token.then(|| SecretString::from(TOKEN)),
        read_token: read_token.then(|| SecretString::from(READ_TOKEN)),
        trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")],
        cors_origins: vec!["https://studio.example.org".to_owned()],
        cache_dir: "cache".into(),
        cache_bytes: 0,
    })
}

fn headers(entries: &[(&'static str, &str)]) -> HeaderMap {
    let entries = entries
        .iter()
        .map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().expect("a header")));
    entries.collect()
}

fn status(result: &Result<Caller, Problem>) -> u16 {
    use axum::response::IntoResponse;
    result.as_ref().map_or_else(|problem| problem.clone().into_response().status().as_u16(), |_| 200)
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

#[tokio::test]
async fn token_decides_what_a_caller_may_do() {
    let access = access(true, true);
    let check = |authorization: &str, is_change| {
        status(&access.check(&headers(&[("authorization", authorization)]), PEER, Target::Api, is_change))
    };
    assert_eq!((check(&format!("Bearer {TOKEN}"), true), check(&format!("bearer {TOKEN}"), false)), (200, 200));
    assert_eq!(
        (check(&format!("Bearer {READ_TOKEN}"), false), check(&format!("Bearer {READ_TOKEN}"), true)),
        (200, 403)
    );
    for wrong in ["Bearer", "Bearer ", "Bearer wrong", &format!("Basic {TOKEN}"), &format!("Bearer {TOKEN}x"), TOKEN] {
        assert_eq!(check(wrong, false), 401, "{wrong}");
    }
    assert_eq!(status(&access.check(&HeaderMap::new(), PEER, Target::Api, false)), 401);
}

#[tokio::test]
async fn even_a_right_token_waits_after_many_wrong_ones() {
    let access = access(true, false);
    let check = |token: &str| {
        status(&access.check(&headers(&[("authorization", &format!("Bearer {token}"))]), PEER, Target::Api, false))
    };
    for _ in 0..10 {
        assert_eq!(check("wrong"), 401);
    }
    assert_eq!((check("wrong"), check(TOKEN)), (429, 429));
    // A missing token is no guess.
    let other = IpAddr::from([192, 0, 2, 2]);
    for _ in 0..20 {
        assert_eq!(status(&access.check(&HeaderMap::new(), other, Target::Api, false)), 401);
    }
}

#[tokio::test]
async fn only_a_trusted_proxy_names_the_client() {
    let access = access(false, false);
    let proxy = IpAddr::from([10, 0, 0, 1]);
    let client =
        |peer, forwarded: &str| access.client_address(&headers(&[("x-forwarded-for", forwarded)]), peer).to_string();
    assert_eq!(client(PEER, "198.51.100.7"), "192.0.2.1");
    assert_eq!(client(proxy, "198.51.100.7"), "198.51.100.7");
    assert_eq!(client(proxy, "6.6.6.6, 198.51.100.7, 10.0.0.2"), "198.51.100.7");
    assert_eq!(client(proxy, "6.6.6.6, nonsense, 10.0.0.2"), "10.0.0.2");
    assert_eq!(client(proxy, "::ffff:198.51.100.7"), "198.51.100.7");
    assert_eq!(client(proxy, ""), "10.0.0.1");
}

#[tokio::test]
async fn pages_of_other_origins_may_not_change_anything() {
    let access = access(true, false);
    let bearer = format!("Bearer {TOKEN}");
    let check = |origin: &str, is_change| {
        let headers = headers(&[("authorization", &bearer), ("host", "assets.example.org:8088"), ("origin", origin)]);
        status(&access.check(&headers, PEER, Target::Api, is_change))
    };
    assert_eq!(check("https://evil.example.org", true), 403);
    assert_eq!(check("null", true), 403);
    assert_eq!(check("http://assets.example.org", true), 403);
    assert_eq!(check("https://evil.example.org", false), 200);
    assert_eq!(check("https://studio.example.org", true), 200);
    assert_eq!(check("http://assets.example.org:8088", true), 200);
}

#[tokio::test]
async fn without_a_token_only_names_of_this_machine_are_answered() {
    let access = access(false, false);
    let check = |host: &str| status(&access.check(&headers(&[("host", host)]), PEER, Target::Api, false));
    for host in ["127.0.0.1:8088", "localhost", "LOCALHOST:1", "[::1]:8088", "127.1.2.3"] {
        assert_eq!(check(host), 200, "{host}");
    }
    for host in
        ["evil.example.org", "evil.example.org:8088", "10.0.0.1", "[2001:db8::1]:8088", "", "localhost.evil.org"]
    {
        assert_eq!(check(host), 403, "{host}");
    }
}

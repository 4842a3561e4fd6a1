//! What is wrong is told, in one shape, and nothing is written.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fake::{Served, json, problem};

#[tokio::test]
async fn a_body_that_is_not_as_it_should_be_says_what_and_where() {
    let served = Served::new().await;
    for (body, said) in [
        ("", "empty"),
        ("{", "EOF"),
        ("nonsense", "line 1 column 2"),
        ("[]", "a JSON object"),
        (
            r#"["any","region",[{"type":"T","data":1}]]"#,
            "a JSON object",
        ),
        (
            r#"{"events":[["5f0c1a52-6d1e-4a2e-9c37-2d5b7c0d9e11","T",1,2]]}"#,
            "a JSON object",
        ),
        (
            r#"{"events":[{"type":"T","data":1}]} x"#,
            "trailing characters",
        ),
        (r#"{"expected":"any"}"#, "missing field `events`"),
        (r#"{"events":{}}"#, "a sequence"),
        (r#"{"events":[{"type":"T"}]}"#, "missing field `data`"),
        (r#"{"events":[{"data":1}]}"#, "missing field `type`"),
        (r#"{"events":[{"type":7,"data":1}]}"#, "a string"),
        (r#"{"events":[{"type":"","data":1}]}"#, "must not be empty"),
        (
            r#"{"events":[{"type":"a\u0000","data":1}]}"#,
            "control characters",
        ),
        (r#"{"events":[{"id":"7","type":"T","data":1}]}"#, "UUID"),
        (r#"{"events":[{"id":7,"type":"T","data":1}]}"#, "UUID"),
        (
            r#"{"events":[{"type":"T","data":1}],"expcted":0}"#,
            "unknown field `expcted`",
        ),
        (
            r#"{"events":[{"type":"T","data":1,"meta":2}]}"#,
            "unknown field `meta`",
        ),
        (
            r#"{"events":[{"type":"T","data":1,"data":2}]}"#,
            "duplicate field `data`",
        ),
        (
            r#"{"events":[{"type":"T","data":1}],"expected":"some"}"#,
            "\"exists\" or a revision",
        ),
        (
            r#"{"events":[{"type":"T","data":1}],"expected":-1}"#,
            "a revision (0, 1, 2…)",
        ),
        (
            r#"{"events":[{"type":"T","data":1}],"durability":"regions:0"}"#,
            "regions:N",
        ),
        (
            r#"{"events":[{"type":"T","data":1}],"durability":2}"#,
            "regions:N",
        ),
        (
            "{\"events\":[{\"type\":\"T\",\"data\":\"\u{1}\"}]}",
            "control character",
        ),
    ] {
        let found = problem(served.append(body).await, 400, "invalid").await;
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.contains(said), "{body}: {detail}");
    }
    assert_eq!(served.fake.count(), 0, "something was written all the same");
}

#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let served = Served::new().await;
    let body = b"{\"events\":[{\"type\":\"T\",\"data\":\"\xff\xfe\"}]}".to_vec();
    problem(served.append(body).await, 400, "invalid").await;
    assert_eq!(served.fake.count(), 0);
}

#[tokio::test]
async fn a_stream_name_that_cannot_be_stored_is_refused() {
    let served = Served::new().await;
    let body = r#"{"events":[{"type":"T","data":1}]}"#;
    let long = "x".repeat(257);
    for name in ["a%00", "a%0Ab", "a%C2%85", "%FF", &*long] {
        for prefix in ["/v1/streams/", "/v1/homes/"] {
            let suffix = if prefix == "/v1/streams/" {
                "/events"
            } else {
                ""
            };
            let path = format!("{prefix}{name}{suffix}");
            problem(served.get(&path).send().await.unwrap(), 400, "invalid").await;
        }
        let path = format!("/v1/streams/{name}/events");
        problem(
            served.post(&path, body).send().await.unwrap(),
            400,
            "invalid",
        )
        .await;
    }
    assert_eq!(served.fake.count(), 0);
}

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_problems_too() {
    let served = Served::new().await;
    for path in [
        "/",
        "/v1",
        "/v1/stream/x/events",
        "/v1/homes/",
        "/v1/events/",
    ] {
        problem(served.get(path).send().await.unwrap(), 404, "not_found").await;
    }
    let wrong = served.post("/v1/digest", "{}").send().await.unwrap();
    assert_eq!(wrong.headers()["allow"], "GET,HEAD");
    problem(wrong, 405, "method_not_allowed").await;
    let url = format!("http://{}/v1/streams/order-1/events", served.addr);
    let wrong = served.client.delete(url).send().await.unwrap();
    assert_eq!(wrong.headers()["allow"], "POST,GET,HEAD");
    problem(wrong, 405, "method_not_allowed").await;
}

#[tokio::test]
async fn a_policy_that_cannot_be_set_is_refused_in_words() {
    let served = Served::new().await;
    let url = |category: &str| format!("http://{}/v1/categories/{category}", served.addr);
    for (category, body, status, code, says) in [
        ("order", "{}", 400, "invalid", "mode"),
        (
            "order-1",
            r#"{"mode":"lww"}"#,
            400,
            "invalid",
            "before the first `-`",
        ),
        ("order", r#"{"mode":"last"}"#, 400, "invalid", "crdt"),
        (
            "order",
            r#"{"mode":"home","home":{"fixed":"mars"}}"#,
            400,
            "invalid",
            "the regions are",
        ),
        (
            "order",
            r#"{"mode":"lww","home":5}"#,
            400,
            "invalid",
            "line 1 column",
        ),
        (
            "ledger",
            r#"{"mode":"lww"}"#,
            409,
            "conflict",
            "holds events",
        ),
    ] {
        let sent = served.client.put(url(category)).body(body).send();
        let found = problem(sent.await.unwrap(), status, code).await;
        let detail = found["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{body}: {detail}");
    }
    let removed = served.client.delete(url("ledger")).send().await.unwrap();
    problem(removed, 409, "conflict").await;
}

#[tokio::test]
async fn an_announced_oversize_body_is_refused_before_it_is_sent() {
    let served = Served::new().await;
    let mut stream = served.connect().await;
    let head = "POST /v1/streams/order-1/events HTTP/1.1\r\nhost: x\r\n\
                content-length: 1000000000\r\nexpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"code\":\"too_large\""), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_too_much_still_gets_to_read_the_answer() {
    let served = Served::new().await;
    let head = "POST /v1/streams/order-1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let spaces = vec![b' '; 20 << 20];
    let announced = format!("{head}content-length: {}\r\n\r\n", spaces.len());
    let in_chunks = format!(
        "{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n",
        spaces.len()
    );
    for head in [announced, in_chunks] {
        // Many clients send everything before they read anything.
        let request = [head.as_bytes(), &spaces, b"\r\n0\r\n\r\n"].concat();
        let answer = served.raw(&request).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.contains("\"code\":\"too_large\""), "{answer}");
    }
    // The door goes on serving.
    json(served.append(r#"{"events":[{"type":"T","data":1}]}"#).await).await;
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let served = Served::new().await;
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ] {
        let answer = served.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

//! `/openapi.json` describes what is really there.

use std::collections::{BTreeMap, BTreeSet};

use meridian_node::http::openapi;
use serde_json::Value;

use crate::fake::{Served, json};

fn described() -> Value {
    serde_json::to_value(openapi()).unwrap()
}

/// Every `$ref` below `value`.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let ("$ref", Value::String(target)) = (name.as_str(), field) {
                    found.insert(target.clone());
                }
                references(field, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_method_of_every_path_is_described() {
    let served = Served::new().await;
    let document = json(served.get("/openapi.json").send().await.unwrap()).await;
    assert_eq!(document, described());
    for (path, methods) in document["paths"].as_object().unwrap() {
        // A method that no path takes is answered with those that this one does.
        let concrete = path
            .replace("{stream}", "order-1")
            .replace("{category}", "order");
        let url = format!("http://{}{concrete}", served.addr);
        let request = served.client.request(reqwest::Method::TRACE, url);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        let allowed = response.headers()["allow"].to_str().unwrap();
        let allowed: BTreeSet<_> = allowed
            .split(',')
            .filter(|method| *method != "HEAD")
            .map(str::to_ascii_lowercase)
            .collect();
        let described: BTreeSet<_> = methods.as_object().unwrap().keys().cloned().collect();
        assert_eq!(allowed, described, "{path}");
    }
}

#[tokio::test]
async fn every_path_of_the_contract_is_there() {
    let document = described();
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
    let contract = [
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/v1/await",
        "/v1/categories",
        "/v1/categories/{category}",
        "/v1/conflicts",
        "/v1/conflicts/{id}",
        "/v1/conflicts/{id}/resolve",
        "/v1/consumers",
        "/v1/consumers/{name}",
        "/v1/consumers/{name}/ack",
        "/v1/consumers/{name}/fetch",
        "/v1/consumers/{name}/nack",
        "/v1/consumers/{name}/parked",
        "/v1/consumers/{name}/parked/{event}/drop",
        "/v1/consumers/{name}/parked/{event}/retry",
        "/v1/digest",
        "/v1/events",
        "/v1/homes",
        "/v1/homes/{stream}",
        "/v1/homes/{stream}/move",
        "/v1/projections",
        "/v1/projections/{name}",
        "/v1/projections/{name}/diff",
        "/v1/projections/{name}/parked",
        "/v1/projections/{name}/parked/{id}/drop",
        "/v1/projections/{name}/parked/{id}/retry",
        "/v1/projections/{name}/pause",
        "/v1/projections/{name}/promote",
        "/v1/projections/{name}/query",
        "/v1/projections/{name}/rebuild",
        "/v1/projections/{name}/resume",
        "/v1/projections/{name}/rollback",
        "/v1/regions/{name}",
        "/v1/regions/{name}/drain",
        "/v1/regions/{name}/fence",
        "/v1/regions/{name}/join",
        "/v1/regions/{name}/leave",
        "/v1/regions/{name}/resume",
        "/v1/reservations/{namespace}/{key}",
        "/v1/status",
        "/v1/streams/{stream}/events",
        "/v1/streams/{stream}/state",
        "/v1/why/order",
    ];
    assert_eq!(paths, contract);
}

#[test]
fn every_answer_has_a_type_and_every_type_is_there() {
    let document = described();
    let mut operations = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations.push(operation);
            assert!(
                operation["summary"].is_string(),
                "{method} {path} has no summary"
            );
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = response["content"].as_object();
                let content = content.unwrap_or_else(|| panic!("{method} {path} {status}"));
                for (kind, body) in content {
                    assert!(
                        body["schema"].is_object(),
                        "{method} {path} {status} {kind}"
                    );
                    let is_error = status.as_str() >= "400";
                    assert_eq!(
                        kind == "application/problem+json",
                        is_error,
                        "{method} {path}"
                    );
                }
            }
        }
    }
    let ids = operations.iter().map(|operation| &operation["operationId"]);
    let unique: BTreeSet<_> = ids.map(|id| id.as_str().unwrap()).collect();
    assert_eq!(
        unique.len(),
        operations.len(),
        "an operation's id is not its own"
    );
    let mut wanted = BTreeSet::new();
    references(&document, &mut wanted);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let given: BTreeSet<_> = schemas
        .keys()
        .map(|name| format!("#/components/schemas/{name}"))
        .collect();
    assert_eq!(wanted, given);
}

/// What is sent has the fields that are described, no more and no fewer.
#[tokio::test]
async fn answers_have_the_described_fields() {
    let served = Served::new().await;
    let appended = json(served.append(r#"{"events":[{"type":"T","data":1}]}"#).await).await;
    let get = async |path: &str| json(served.get(path).send().await.unwrap()).await;
    let page = get("/v1/streams/order-1/events").await;
    let refused = served.append("{").await.json::<Value>().await.unwrap();
    let url = format!("http://{}/v1/reservations/email/a?owner=o", served.addr);
    let released = json(served.client.delete(url).send().await.unwrap()).await;
    let answers = BTreeMap::from([
        ("Appended", appended.clone()),
        ("Dot", appended["dots"][0].clone()),
        ("Event", page["events"][0].clone()),
        ("StreamPage", page),
        ("EventsPage", get("/v1/events").await),
        ("NodeStatus", get("/v1/status").await),
        ("DigestEntry", get("/v1/digest").await[0].clone()),
        ("Home", get("/v1/homes/order-1").await),
        ("Homes", get("/v1/homes?limit=2").await),
        ("ConflictsPage", get("/v1/conflicts").await),
        ("State", get("/v1/streams/cart-1/state").await),
        ("Category", get("/v1/categories/order").await),
        ("Categories", get("/v1/categories").await),
        ("Reservation", get("/v1/reservations/email/a").await),
        ("Released", released),
        ("Awaited", get("/v1/await?dot=us-east/3/1").await),
        ("Health", get("/healthz").await),
    ]);
    let document = described();
    let schemas = &document["components"]["schemas"];
    for (name, answer) in answers {
        let described = schemas[name]["properties"].as_object();
        let described = described.unwrap_or_else(|| panic!("{name} is not described"));
        let sent = answer.as_object().unwrap();
        let (described, sent): (BTreeSet<_>, BTreeSet<_>) =
            (described.keys().collect(), sent.keys().collect());
        assert_eq!(sent, described, "{name}");
    }
    let problem = serde_json::to_string(&schemas["Problem"]).unwrap();
    for field in refused.as_object().unwrap().keys() {
        assert!(
            problem.contains(&format!("\"{field}\"")),
            "{field}: {problem}"
        );
    }
}

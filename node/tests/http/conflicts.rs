//! Conflict records, at a door that has none. Those of a real node are tested where they are made.

use serde_json::json;

use crate::fake::{Served, json, problem};

#[tokio::test]
async fn a_door_without_conflict_records_lists_none_and_says_so() {
    let served = Served::new().await;
    let list = served.get("/v1/conflicts?status=all").send().await.unwrap();
    assert_eq!(json(list).await, json!({"conflicts": [], "next": null}));
    let path = "/v1/conflicts/00000000-0000-0000-0000-000000000001";
    let read = served.get(path).send().await.unwrap();
    problem(read, 501, "not_implemented").await;
}

#[tokio::test]
async fn what_is_asked_wrongly_is_refused() {
    let served = Served::new().await;
    for wrong in [
        "status=new",
        "stream=",
        "after=x",
        "limit=0",
        "limit=1001",
        "id=1",
    ] {
        let path = format!("/v1/conflicts?{wrong}");
        problem(served.get(&path).send().await.unwrap(), 400, "invalid").await;
    }
    let path = "/v1/conflicts/00000000-0000-0000-0000-000000000001";
    for wrong in ["limit=0", "from=-1", "after=1"] {
        let path = format!("{path}?{wrong}");
        problem(served.get(&path).send().await.unwrap(), 400, "invalid").await;
    }
    for wrong in [
        json!({}),
        json!({"action": "forget"}),
        json!({"action": "rebase", "why": "r"}),
    ] {
        let path = format!("{path}/resolve");
        let refused = served.post(&path, wrong.to_string()).send().await;
        problem(refused.unwrap(), 400, "invalid").await;
    }
}

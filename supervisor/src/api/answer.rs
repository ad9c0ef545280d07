//! Answers: JSON documents, problem documents, and request bodies read within their limits.
//!
//! In: values and problems. Out: responses. Must not: put anything into an error that the dispatcher did not mean for the
//! caller.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use molt_core::{code::Code, wire::Problem};
use serde::{Serialize, de::DeserializeOwned};

/// Longest request body; policy text travels inside.
pub(crate) const BODY: usize = 1 << 20;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Problem);

impl Refused {
    /// With the HTTP status that follows from the code.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Problem::new(code, detail))
    }

    /// With an HTTP status of its own, for what HTTP has a word for.
    pub(crate) fn with_status(status: StatusCode, code: Code, detail: impl Into<String>) -> Self {
        let mut problem = Problem::new(code, detail);
        problem.status = status.as_u16();
        Self(problem)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = with_type(status, "application/problem+json", &self.0);
        response.extensions_mut().insert(self.0.code);
        response
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    with_type(status, "application/json", value)
}

fn with_type(status: StatusCode, media: &'static str, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
            response
        }
        // Wire types have text keys only; this is not reached.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A JSON body of at most [`BODY`] bytes; no body reads as `{}`.
#[derive(Debug)]
pub(crate) struct Input<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        let media = request.headers().get(header::CONTENT_TYPE).cloned();
        let bytes = body(request).await?;
        if bytes.is_empty() {
            return parse(b"{}").map(Self);
        }
        let is_json = media.is_some_and(|value| {
            value
                .to_str()
                .is_ok_and(|text| text.split(';').next().is_some_and(|kind| kind.trim() == "application/json"))
        });
        if !is_json {
            return Err(Refused::with_status(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::Invalid,
                "the body must be application/json",
            ));
        }
        parse(&bytes).map(Self)
    }
}

/// The whole body, within the limit. One that says it is longer is refused before a byte of it is asked for.
pub(crate) async fn body(request: Request) -> Result<Bytes, Refused> {
    let too_long = || {
        Refused::with_status(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::Invalid,
            "the body must come whole and have at most 1 MiB",
        )
    };
    let said = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|length| length > BODY as u64) {
        return Err(too_long());
    }
    axum::body::to_bytes(request.into_body(), BODY).await.map_err(|_| too_long())
}

/// Reads a request document; an image reference that cannot be read has a code of its own.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    let invalid = |error: serde_json::Error| {
        let text = error.to_string();
        // The place in a document of one line is of no use to a person.
        let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
        let code = if text.starts_with("image reference ") { Code::ReferenceInvalid } else { Code::Invalid };
        Refused::new(code, text)
    };
    // A list would be read as fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refused::new(Code::Invalid, "the body must be a JSON object"));
    }
    // serde_json refuses more than 128 levels of nesting by itself.
    serde_json::from_slice(bytes).map_err(invalid)
}

//! Signed orders: a compact JWS becomes claims that a key of the spec has signed.
//!
//! In: the token, the policy that came beside it, the keys of the spec. Out: claims and the key that signed them, or why
//! not. Must not: believe a word of the token that is not signed, but for the id of the key to look for; know the journal or
//! a clock (`molt_core::order::judge` does the rest); say yes to anything that it does not know.

pub(crate) mod key;
pub(crate) mod token;

#[cfg(test)]
mod tests;

use molt_core::{
    order::{Claims, Refusal, cut},
    spec::{OrderKey, Orders},
};
use sha2::{Digest as _, Sha256};

use self::{
    key::Key,
    token::{Header, Token},
};

/// Longest token, in bytes.
pub(crate) const MAX_TOKEN: usize = 64 << 10;

/// An order whose signature is good.
#[derive(Debug)]
pub(crate) struct Signed {
    /// What it says. The policy, where one came, is in it, and is the one that was signed for.
    pub(crate) claims: Claims,
    /// Who signed it.
    pub(crate) key: OrderKey,
}

/// Reads and verifies a token. Reads the key's file, if it has one: not for the dispatcher's thread.
pub(crate) fn verify(orders: &Orders, jws: &[u8], policy: Option<String>) -> Result<Signed, Refusal> {
    let token = Token::split(jws)?;
    let header: Header = token.header()?;
    let unknown = || Refusal::UnknownKey(cut(&header.kid));
    let key = orders.keys.iter().find(|key| key.id == header.kid).ok_or_else(unknown)?;
    if header.alg != key.algorithm.as_str() {
        return Err(Refusal::Algorithm { said: cut(&header.alg), wanted: key.algorithm.as_str() });
    }
    let unusable = |why: String| Refusal::KeyUnusable { key: key.id.clone(), why };
    Key::of(key).map_err(unusable)?.verify(token.signed, &token.signature)?;
    // From here on the bytes are those that the holder of the key has signed.
    let mut claims: Claims = token.claims()?;
    take_policy(&mut claims, policy)?;
    Ok(Signed { claims, key: key.clone() })
}

/// The policy that came inside of the token or beside it must be the one whose digest was signed.
fn take_policy(claims: &mut Claims, beside: Option<String>) -> Result<(), Refusal> {
    let refuse = |why: &str| Err(Refusal::Policy(why.to_owned()));
    if claims.policy.is_some() && beside.is_some() {
        return refuse("one came in the token, and another one beside it");
    }
    let Some(policy) = claims.policy.take().or(beside) else { return Ok(()) };
    let Some(signed) = claims.policy_digest else { return refuse("the token has no policyDigest") };
    if policy.trim().is_empty() {
        return refuse("its text is empty");
    }
    let found = molt_core::ids::Digest::from_bytes(Sha256::digest(policy.as_bytes()).into());
    if found != signed {
        return refuse(&format!("its text has the digest {found}, and {signed} was signed"));
    }
    claims.policy = Some(policy);
    Ok(())
}

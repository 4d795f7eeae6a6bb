//! A jump that leads nowhere, told where the person can read it.
//!
//! A refused channel carries a reason (RFC 4254 §5.1), but a client that shares its connection (`ControlMaster`) shows
//! "Session open refused by peer" instead. So `ssh -W`, which is what `-J` runs, gets its channel, and in it an SSH
//! server that disconnects with the reason (RFC 4253 §11.1). No key is exchanged, what the client sends is thrown away.

use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelOpenFailure, server::ChannelOpenHandle};
use tokio::io::AsyncWriteExt;

use crate::recording::ChannelMessage;
use crate::session::{Ear, Mouth, Sides};

/// Refuses `channel` with `reason`; `stdio` if it is the channel of an `ssh -W`.
pub(super) async fn refuse(channel: Channel<Msg>, reply: ChannelOpenHandle, reason: String, stdio: bool) {
    if !stdio {
        return reply.reject(ChannelOpenFailure::Other { code: 1, reason }).await;
    }
    reply.accept().await;
    let mut stream = channel.into_stream();
    let told = async {
        stream.write_all(b"SSH-2.0-Keyward\r\n").await?;
        stream.write_all(&disconnect(&reason)).await?;
        // A client that finds its pipe closed while it writes dies of that, and shows no reason. So it leaves first.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    match tokio::time::timeout(LEAVE, told).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "user.gone_before_the_refusal"),
    }
}

/// Tells `reason` to a client that speaks SSH on a channel that is open and has carried nothing yet.
pub(super) async fn tell<E: Ear, M: Mouth>(mut user: Sides<E, M>, reason: &str) {
    let told = async {
        let words = [b"SSH-2.0-Keyward\r\n".as_slice(), &disconnect(reason)].concat();
        user.mouth.say(ChannelMessage::Data(words.into())).await?;
        // As above: it leaves first.
        while !matches!(user.ear.next().await, None | Some(ChannelMessage::Eof | ChannelMessage::Close)) {}
        user.mouth.say(ChannelMessage::Close).await
    };
    match tokio::time::timeout(LEAVE, told).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(why)) => tracing::debug!(%why, "user.gone_before_the_refusal"),
    }
}

/// Whether an originator is that of `ssh -W`: OpenSSH fills in this one where there is no connection behind a channel.
pub(super) fn is_stdio(address: &str, port: u32) -> bool {
    address == "127.0.0.1" && port == 65_535
}

/// An SSH_MSG_DISCONNECT as it stands before the first key exchange: length, padding, payload, no MAC (RFC 4253 §6).
fn disconnect(reason: &str) -> Vec<u8> {
    let mut payload = vec![SSH_MSG_DISCONNECT];
    payload.extend(SSH_DISCONNECT_BY_APPLICATION.to_be_bytes());
    for text in [reason.as_bytes(), b"en"] {
        payload.extend(u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
        payload.extend(text);
    }
    // At least four bytes of padding, and a multiple of eight in all.
    let padding = 4 + (8 - (5 + payload.len() + 4) % 8) % 8;
    let length = u32::try_from(1 + payload.len() + padding).unwrap_or(0);
    let mut packet = length.to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).unwrap_or(4));
    packet.extend(payload);
    packet.resize(packet.len() + padding, 0);
    packet
}

/// How long a client may take to leave.
const LEAVE: Duration = Duration::from_secs(5);
const SSH_MSG_DISCONNECT: u8 = 1;
const SSH_DISCONNECT_BY_APPLICATION: u32 = 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_a_multiple_of_eight_with_at_least_four_bytes_of_padding() {
        for size in 0..32 {
            let packet = disconnect(&"x".repeat(size));
            assert_eq!(packet.len() % 8, 0);
            assert_eq!(u32::from_be_bytes(packet[..4].try_into().unwrap()) as usize, packet.len() - 4);
            assert!((4..12).contains(&packet[4]));
        }
    }
}

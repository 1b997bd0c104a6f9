"""Recurrent networks: fused and stepwise, in both directions, projected, packed, with attention, written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.entry import network


@network("lstm_classifier", (2, 9), tokens=30, note="embedding, LSTM, its last step, linear")
class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.fc = nn.Linear(24, 4)

    def forward(self, tokens):
        y, _ = self.lstm(self.embedding(tokens))
        return self.fc(y[:, -1])


@network("gru_max_over_time", (2, 10, 5), note="two layers in both directions, then the maximum over time")
class GRUMaxOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(5, 16)
        self.gru = nn.GRU(16, 20, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.fc = nn.Linear(2 * 20, 3)

    def forward(self, x):
        y, _ = self.gru(F.relu(self.proj(x)))
        return self.fc(y.max(dim=1).values)


@network("crnn", (2, 1, 16, 24), note="convolutions, the height folded into features, a bidirectional LSTM over width")
class CRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.lstm = nn.LSTM(16 * 4, 24, num_layers=2, bidirectional=True)
        self.fc = nn.Linear(48, 11)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.bn(self.conv2(x))), 2)
        x = x.flatten(1, 2).permute(2, 0, 1)
        y, _ = self.lstm(x)
        return self.fc(y).transpose(0, 1).log_softmax(-1)


@network("lstm_cell_decoder", (2, 8, 6), note="an LSTM reads, an LSTMCell writes step by step from its own outputs")
class LSTMCellDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 20
        self.encoder = nn.LSTM(6, self.hidden_size, batch_first=True)
        self.bridge = nn.Linear(self.hidden_size, 28)
        self.cell = nn.LSTMCell(12, 28)
        self.out = nn.Linear(28, 6)
        self.feed = nn.Linear(6, 12)

    def forward(self, x):
        h0 = torch.zeros(1, x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        _, (h, _) = self.encoder(x, (h0, torch.zeros_like(h0)))
        h = torch.tanh(self.bridge(h.squeeze(0)))
        c = torch.zeros_like(h)
        step, found = x[:, -1], []
        for _ in range(4):
            h, c = self.cell(F.relu(self.feed(step)), (h, c))
            step = self.out(h)
            found.append(step)
        return torch.stack(found, 1)


@network("lstm_projected", (2, 7, 6), note="an LSTM whose hidden state is projected to fewer features (proj_size)")
class LSTMProjected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 32, num_layers=2, proj_size=8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.lstm(x)
        return self.fc(self.norm(y).mean(1))


@network(
    "gru_attention", (2, 7), (2, 5), tokens=20, note="seq2seq: a GRU decoder attends to the encoder's steps by bmm"
)
class GRUAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(20, 12)
        self.target = nn.Embedding(20, 12)
        self.encoder = nn.GRU(12, 24, batch_first=True)
        self.decoder = nn.GRU(12, 24, batch_first=True)
        self.mix = nn.Linear(48, 16)
        self.out = nn.Linear(16, 20)

    def forward(self, source, target):
        memory, state = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), state)
        weights = torch.bmm(y, memory.transpose(1, 2)).softmax(-1)
        return self.out(torch.tanh(self.mix(torch.cat([torch.bmm(weights, memory), y], -1))))


@network("lstm_by_hand", (2, 6, 5), note="an LSTM of its own: one linear layer for all gates, chunk(4), a loop")
class LSTMByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = 16
        self.inp = nn.Linear(5, 4 * self.hidden)
        self.rec = nn.Linear(self.hidden, 4 * self.hidden, bias=False)
        self.fc = nn.Linear(self.hidden, 3)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], self.hidden)
        for step in x.unbind(1):
            i, f, g, o = (self.inp(step) + self.rec(h)).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.fc(h)


@network("gru_packed", (3, 8), tokens=25, note="sequences of different lengths, packed by the number of their tokens")
class GRUPacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(25, 16)
        self.gru = nn.GRU(16, 20, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(40, 4)

    def forward(self, tokens):
        lengths = [max(tokens.shape[1] - row, 1) for row in range(tokens.shape[0])]
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True)
        y, h = self.gru(packed)
        y, _ = pad_packed_sequence(y, batch_first=True)
        return self.fc(y.sum(1) * 0.2 + torch.cat([h[0], h[1]], 1))


@network("gru_residual_stack", (2, 9, 6), note="GRUs of one layer with residual connections and normalisation")
class GRUResidualStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(6, 24)
        self.layers = nn.ModuleList([nn.GRU(24, 24, batch_first=True) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(24) for _ in range(2)])
        self.fc = nn.Linear(24, 3)

    def forward(self, x):
        x = self.inp(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))[0]
        return self.fc(x[:, -1])


@network("tiny_keyword_spotter", (2, 20, 10), note="a strided convolution over time, a GRU, its last state")
class KeywordSpotter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(10, 16, 5, stride=2)
        self.bn = nn.BatchNorm1d(16)
        self.gru = nn.GRU(16, 24, num_layers=2)
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x.transpose(1, 2))))
        _, h = self.gru(x.permute(2, 0, 1))
        return self.fc(h[-1])

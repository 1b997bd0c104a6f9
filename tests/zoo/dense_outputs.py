"""Networks whose output is an image or several maps: U-Nets, an autoencoder, a feature pyramid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.entry import network


class DoubleConv(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.double_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, out_channels, bilinear):
        super().__init__()
        if bilinear:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(in_channels + out_channels, out_channels)
        else:
            self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
            self.conv = DoubleConv(out_channels * 2, out_channels)

    def forward(self, x1, x2):
        x1 = self.up(x1)
        dy = x2.size()[2] - x1.size()[2]
        dx = x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    def __init__(self, bilinear):
        super().__init__()
        self.n_channels = 3
        self.inc = DoubleConv(3, 16)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), DoubleConv(32, 48))
        self.up1 = Up(48, 32, bilinear)
        self.up2 = Up(32, 16, bilinear)
        self.outc = nn.Conv2d(16, 2, kernel_size=1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x = self.up1(self.down2(x2), x2)
        return self.outc(self.up2(x, x1))


@network("unet_transposed", (2, 3, 16, 16), note="U-Net with transposed convolutions")
class UNetTransposed(UNet):
    def __init__(self) -> None:
        super().__init__(bilinear=False)


@network("unet_bilinear", (2, 3, 18, 18), note="U-Net with bilinear upsampling and padding to odd sizes")
class UNetBilinear(UNet):
    def __init__(self) -> None:
        super().__init__(bilinear=True)


@network("autoencoder", (2, 1, 16, 16), note="convolutional encoder, linear code, view back to maps, decoder")
class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.enc2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.to_code = nn.Linear(32 * 4 * 4, 24)
        self.from_code = nn.Linear(24, 32 * 4 * 4)
        self.dec1 = nn.ConvTranspose2d(32, 16, 3, stride=2, padding=1, output_padding=1)
        self.dec2 = nn.ConvTranspose2d(16, 1, 3, stride=2, padding=1, output_padding=1)

    def encode(self, x):
        x = F.relu(self.enc2(F.relu(self.enc1(x))))
        return self.to_code(x.view(x.size(0), -1))

    def decode(self, z):
        x = F.relu(self.from_code(z)).view(-1, 32, 4, 4)
        return torch.sigmoid(self.dec2(F.relu(self.dec1(x))))

    def forward(self, x):
        return self.decode(self.encode(x))


@network(
    "fpn",
    (2, 3, 32, 32),
    note="feature pyramid: lateral convolutions, top-down sums, one head for all levels",
)
class FeaturePyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.c2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.c3 = nn.Sequential(nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU())
        self.laterals = nn.ModuleList([nn.Conv2d(w, 32, 1) for w in (16, 32, 48)])
        self.smooth = nn.ModuleList([nn.Conv2d(32, 32, 3, padding=1) for _ in range(3)])
        self.head = nn.Conv2d(32, 6, 3, padding=1)

    def _upsample_add(self, x, y):
        _, _, h, w = y.size()
        return F.interpolate(x, size=(h, w), mode="nearest") + y

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(c1)
        c3 = self.c3(c2)
        p3 = self.laterals[2](c3)
        p2 = self._upsample_add(p3, self.laterals[1](c2))
        p1 = self._upsample_add(p2, self.laterals[0](c1))
        return [self.head(F.relu(smooth(p))) for smooth, p in zip(self.smooth, [p1, p2, p3], strict=True)]

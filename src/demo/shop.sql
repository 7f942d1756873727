-- A small shop: 200 customers, 120 products, 1,700 orders of the last three days. The same every time, but for the hour.
create schema shop;

create table shop.customers (
    id int primary key generated always as identity,
    name text not null,
    city text not null
);
comment on table shop.customers is 'Who buys.';

create table shop.products (
    id int primary key generated always as identity,
    name text not null,
    category text not null,
    price numeric(8, 2) not null check (price > 0),
    stock int not null check (stock >= 0)
);
comment on table shop.products is 'What there is to buy, and how much of it is left.';

create table shop.orders (
    id int primary key generated always as identity,
    customer_id int not null references shop.customers,
    product_id int not null references shop.products,
    quantity int not null check (quantity > 0),
    status text not null default 'open'
        check (status in ('open', 'paid', 'packed', 'shipped', 'cancelled')),
    total numeric(10, 2) not null,
    placed_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
comment on table shop.orders is 'open → paid → packed → shipped; or cancelled before that.';

create table shop.settings (
    only_row bool primary key default true check (only_row),
    rate float8 not null check (rate between 0 and 10000)
);
comment on table shop.settings is 'One row.';
comment on column shop.settings.rate is 'Writes per second of the demo''s traffic; read every second.';

-- Numbers that look random and are the same every time.
create function pg_temp.pick(salt text, number int, choices int) returns int
    language sql immutable
    return ('x' || substr(md5(salt || number), 1, 7))::bit(28)::int % choices + 1;

insert into shop.customers (name, city)
select
    (array['Ada', 'Alan', 'Barbara', 'Dennis', 'Donald', 'Edsger', 'Frances', 'Grace', 'Hedy', 'John', 'Katherine',
           'Ken', 'Leslie', 'Margaret', 'Niklaus', 'Radia', 'Shafi', 'Tim', 'Tony', 'Yukihiro'])
        [pg_temp.pick('first', n, 20)] || ' ' ||
    (array['Allen', 'Berners', 'Dijon', 'Goldman', 'Hamilton', 'Hopkins', 'Ito', 'Johansson', 'Kaya', 'Lamar',
           'Liskova', 'Moreau', 'Núñez', 'Okafor', 'Perl', 'Ritter', 'Thomsen', 'Turner', 'Wirth', 'Žák'])
        [pg_temp.pick('last', n, 20)],
    (array['Berlin', 'Lagos', 'Lima', 'Lyon', 'Nairobi', 'Oslo', 'Porto', 'Pune', 'Quito', 'Zürich'])
        [pg_temp.pick('city', n, 10)]
from generate_series(1, 200) n;

insert into shop.products (name, category, price, stock)
select
    (array['Small', 'Large', 'Light', 'Heavy', 'Blue', 'Green', 'Plain', 'Folding', 'Quiet', 'Old'])
        [pg_temp.pick('adjective', n, 10)] || ' ' ||
    (array['chair', 'table', 'lamp', 'kettle', 'bicycle', 'umbrella', 'backpack', 'clock', 'notebook', 'teapot', 'radio', 'shelf'])
        [(n - 1) % 12 + 1],
    (array['furniture', 'furniture', 'light', 'kitchen', 'outdoors', 'outdoors', 'outdoors', 'office', 'office', 'kitchen', 'office', 'furniture'])
        [(n - 1) % 12 + 1],
    5 + pg_temp.pick('price', n, 20000) / 100.0,
    pg_temp.pick('stock', n, 150) + 20
from generate_series(1, 120) n;

insert into shop.orders (customer_id, product_id, quantity, status, total, placed_at, updated_at)
select
    pg_temp.pick('customer', n, 200), product.id, quantity,
    (array['open', 'open', 'paid', 'paid', 'packed', 'shipped', 'shipped', 'shipped', 'cancelled'])
        [pg_temp.pick('status', n, 9)],
    product.price * quantity,
    now() - (1701 - n) * interval '150 seconds',
    now() - (1701 - n) * interval '150 seconds'
from generate_series(1, 1700) n
cross join lateral (select pg_temp.pick('quantity', n, 4) as quantity) chosen
join shop.products product on product.id = pg_temp.pick('product', n, 120)
order by n;
